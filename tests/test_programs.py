# SPDX-License-Identifier: Apache-2.0
"""ONNX models as programs, and single nodes run by onnxruntime."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper

from qhyvit_onnx import programs
from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.kernels.program import Step
from qhyvit_onnx.programs import opaque_runner, program_of, run_opaque
from qhyvit_onnx.runtime import Session
from tests.blocks import FAMILIES

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)

BRANCH = """
<ir_version: 8, opset_import: ["": 17]>
g (float[3, 4] x, bool c) => (float[3, 4] y) {
    h = Relu (x)
    y = If (c) <
        then_branch = t () => (float[3, 4] a) { k = Exp (h) a = Add (k, w) },
        else_branch = e () => (float[3, 4] b) { b = Neg (x) }
    >
}"""

LOOP = """
<ir_version: 8, opset_import: ["": 17]>
g (float[3, 4] x) => (float[3, 4] y) {
    y = Loop (n, , x) <
        body = b (int64 i, bool c, float[3, 4] a) => (bool again, float[3, 4] z)
            { again = Identity (c) z = Add (a, step) }
    >
}"""


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_steps_have_the_names_of_the_nodes(family):
    model = family()
    for node in model.graph.node[::2]:
        node.name = ""
    model.graph.node[-1].name = model.graph.node[1].name
    program = program_of(model)
    assert [step.name for step in program.steps] == [n.name for n in import_graph(model).nodes]
    assert len({step.name for step in program.steps}) == len(program.steps)
    assert (program.inputs, program.opset) == (("x",), 17)


def test_constants_are_initializers_and_constant_nodes(build):
    model = build(
        "g (float[3] x) => (float[3] y) { a = Constant <value = float[3] {1, 2, 3}> () "
        "b = Constant <value_ints = [3]> () c = Constant <value_float = 2.5> () "
        "s = Add (x, a) r = Reshape (s, b) m = Mul (r, c) y = Add (m, w) }",
        w=(3,),
    )
    program = program_of(model)
    assert [step.op for step in program.steps] == ["Add", "Reshape", "Mul", "Add"]
    found = {name: (array.dtype.name, array.tolist()) for name, array in program.constants.items()}
    assert found.pop("w")[0] == "float32"
    assert found == {
        "a": ("float32", [1, 2, 3]),
        "b": ("int64", [3]),
        "c": ("float32", 2.5),
    }


def test_an_initializer_that_is_listed_as_an_input_is_a_constant(build):
    model = build("g (float[3] x, float[3] w) => (float[3] y) { y = Add (x, w) }", w=(3,))
    assert program_of(model).inputs == ("x",)


def test_attributes_become_python():
    nodes = [
        helper.make_node("A", [], ["a"], n=3, f=0.5, s="text", ns=[1, 2], ss=["p", "q"]),
        helper.make_node("B", [], ["b"], t=onnx.numpy_helper.from_array(X)),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    first, second = program_of(model).steps
    assert dict(first.attrs) == {"n": 3, "f": 0.5, "s": "text", "ns": [1, 2], "ss": ["p", "q"]}
    np.testing.assert_array_equal(second.attrs["t"], X)


def test_functions_are_inlined():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "local": 1]>\n'
        "g (float[3] x) => (float[3] y) { y = local.twice (x) }\n"
        '<domain: "local", opset_import: ["": 17]>\n'
        "twice (a) => (b) { b = Add (a, a) }"
    )
    assert [step.op for step in program_of(model).steps] == ["Add"]


def test_a_sparse_initializer_is_refused():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>\ng (float[3] x) => (float[3] y) { y = Relu (x) }'
    )
    model.graph.sparse_initializer.add()
    with pytest.raises(ModelError, match="sparse"):
        program_of(model)


def test_a_step_knows_what_its_bodies_capture(build):
    assert program_of(build(BRANCH, w=(4,))).steps[1].captured == ("h", "w", "x")
    nested = BRANCH.replace(
        "b = Neg (x)",
        """b = If (c) <
        then_branch = p () => (float[3, 4] q) { q = Neg (x) },
        else_branch = r () => (float[3, 4] s) { u = Sub (h, v) s = Relu (u) }
    >""",
    )
    found = program_of(build(nested, w=(4,), v=(4,))).steps[1].captured
    assert found == ("c", "h", "v", "w", "x")


@pytest.mark.parametrize("condition", [True, False])
def test_runs_a_branch(condition, build):
    program = program_of(build(BRANCH, w=(4,)))
    step, hidden, weight = program.steps[1], np.maximum(X, 0), program.constants["w"]
    for run in (lambda *a: run_opaque(*a, program.opset), opaque_runner(program)):
        (found,) = run(step, [np.asarray(condition), hidden, weight, X])
        # Exp of float32 in two libraries: units in the last place
        want = np.exp(hidden) + weight if condition else -X
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6)


def test_runs_a_loop(build):
    program = program_of(build(LOOP, n=np.int64(3), step=np.float32(0.5)))
    (step,) = program.steps
    assert (step.inputs, step.captured) == (("n", "", "x"), ("step",))
    half = np.asarray(0.5, np.float32)
    (found,) = run_opaque(step, [np.asarray(3), None, X, half], program.opset)
    # three sums instead of one
    np.testing.assert_allclose(found, X + 1.5, rtol=1e-6, atol=1e-6)


def test_a_runner_keeps_one_session_for_each_type(build, monkeypatch):
    opened = []
    monkeypatch.setattr(programs, "Session", lambda model: opened.append(model) or Session(model))
    program = program_of(build("g (float[3, 4] x) => (float[3, 4] y) { y = Add (x, x) }"))
    run = opaque_runner(program)
    for array in (X, X[:2], X.astype(np.float64), X):
        (found,) = run(program.steps[0], [array, array])
        np.testing.assert_array_equal(found, 2 * array)
        assert found.dtype == array.dtype
    assert len(opened) == 2


@pytest.mark.parametrize(
    ("step", "arrays", "want"),
    [
        (Step(name="n", op="Sub", inputs=("x", "x"), outputs=("y",)), [X, X[:1]], X - X[:1]),
        (Step(name="n", op="Clip", inputs=("x", "", "h"), outputs=("y",)),
         [X, None, np.zeros((), np.float32)], np.minimum(X, 0)),
        (Step(name="n", op="Relu", domain="ai.onnx", inputs=("x",), outputs=("y",)),
         [X], np.maximum(X, 0)),
        (Step(name="n", op="ReduceSum", inputs=("x",), outputs=("y",), attrs={"keepdims": 0}),
         [X], X.sum()),
        (Step(name="n", op="ConstantOfShape", inputs=("s",), outputs=("y",),
              attrs={"value": np.array([7], np.int64)}), [np.array([2])], [7, 7]),
        (Step(name="n", op="BiasGelu", domain="com.microsoft", inputs=("x", "b"), outputs=("y",)),
         [np.zeros((3, 4), np.float32), np.zeros(4, np.float32)], np.zeros((3, 4))),
    ],
    ids=["one tensor, two values", "absent input", "domain spelled out", "number", "tensor",
         "another domain"],
)  # fmt: skip
def test_runs_one_node(step, arrays, want):
    (found,) = run_opaque(step, arrays, 17)
    # the sum of twelve numbers in another order
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6)


def test_a_failing_node_is_a_model_error():
    step = Step(name="n", op="NoSuchOp", inputs=("x",), outputs=("y",))
    with pytest.raises(ModelError, match="NoSuchOp"):
        run_opaque(step, [X], 17)


def test_a_sequence_is_refused():
    step = Step(name="n", op="SequenceConstruct", inputs=("x",), outputs=("y",))
    with pytest.raises(ModelError, match="no tensor"):
        run_opaque(step, [X], 17)


def test_needs_no_torch():
    code = "import sys, qhyvit_onnx.programs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
