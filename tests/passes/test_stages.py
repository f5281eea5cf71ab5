# SPDX-License-Identifier: Apache-2.0
"""A stage gives what the whole model would, were one of its tensors another."""

import numpy as np
import onnx
import pytest

from qhyvit_onnx.passes import _sensitivity
from qhyvit_onnx.passes._stages import DELTA, stages_of, telling
from qhyvit_onnx.runtime import Session

LONG = """g (float[2, 6] x) => (float[2, 6] y, float[2, 6] early, float late) {
    t0 = MatMul (x, w) early = Relu (t0) t1 = MatMul (early, w) t2 = Tanh (t1) t3 = Add (t2, t0)
    t4 = MatMul (t3, w) t5 = Tanh (t4) t6 = Add (t5, x) t7 = MatMul (t6, w) t8 = Add (t7, t2)
    t9 = Tanh (t8) y = MatMul (t9, w) late = ReduceSum <keepdims = 0> (t9)
}"""
INSIDE = ["t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9"]


def branch(body):
    """Return a model in which ``body`` stands in both arms of an If, between computed tensors."""
    inner = f"g () => (float[2, 6] z) {{ {body} }}"
    return f"""g (float[2, 6] x, bool c) => (float[2, 6] y) {{
        t0 = MatMul (x, w) t1 = Tanh (t0) t2 = MatMul (t1, w) t3 = Relu (t2) t4 = MatMul (t3, w)
        t5 = If (c) <then_branch = {inner}, else_branch = {inner}> y = MatMul (t5, w)
    }}"""


def hold(model, feeds, inside):
    """Assert that every stage gives what the model with that tensor moved gives; return them."""
    rng = np.random.default_rng(0)
    stages = stages_of(model, inside)
    ends = [item.name for item in model.graph.output]
    whole = telling(model, [*inside, *(name for stage in stages for name in stage.frontier)])
    clean = whole.run(feeds) | feeds
    for stage in stages:
        session = stage.session(model, clean, ends)
        for name in stage.perturbed:
            delta = rng.standard_normal(clean[name].shape).astype(np.float32)
            given = {key: clean[key] for key in stage.frontier}
            found = session.run({**given, f"{name}{DELTA}": delta})
            want = moved(model, name, delta, feeds)
            assert found
            for end in ends:
                np.testing.assert_allclose(
                    found.get(end, clean[end]), want[end], rtol=1e-5, atol=1e-5
                )
    return stages


def moved(model, name, delta, feeds):
    """Return the outputs of ``model`` when ``delta`` is added to the tensor ``name``."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    (at,) = (i for i, node in enumerate(other.graph.node) if name in node.output)
    other.graph.node[at].output[:] = ["before"]
    other.graph.initializer.append(onnx.numpy_helper.from_array(delta, "delta"))
    other.graph.node.insert(at + 1, onnx.helper.make_node("Add", ["before", "delta"], [name]))
    return Session(other).run(feeds)


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((2, 6)).astype(np.float32)


def test_tensors_that_cross_a_cut(build, x):
    stages = hold(build(LONG, w=(6, 6)), {"x": x}, INSIDE)
    assert [stage.perturbed for stage in stages] == [
        ("t0", "t1", "t2", "t3"), ("t4", "t5", "t6", "t7"), ("t8", "t9"),
    ]  # fmt: skip
    assert [set(stage.frontier) for stage in stages] == [{"x"}, {"t3", "x", "t2"}, {"t7", "t2"}]


def test_the_order_in_which_they_are_asked_for_does_not_matter(build):
    model = build(LONG, w=(6, 6))
    assert stages_of(model, INSIDE[::-1]) == stages_of(model, INSIDE)


def test_many_tensors_make_no_more_than_eight_stages(build):
    body = " ".join(f"t{i + 1} = Tanh (t{i})" for i in range(100))
    model = build(f"g (float[2] t0) => (float[2] y) {{ {body} y = Relu (t100) }}")
    stages = stages_of(model, [f"t{i}" for i in range(1, 101)])
    assert [len(stage.perturbed) for stage in stages] == [13] * 7 + [9]


def test_what_a_branch_reads_from_outside(build, x):
    model = build(branch("z = Add (t1, t3)"), w=(6, 6))
    stages = hold(model, {"x": x, "c": np.ones((), bool)}, ["t0", "t1", "t2", "t3", "t5"])
    assert set(stages[-1].frontier) == {"c", "t1", "t3"}


def test_a_sequence_may_cross_a_cut(build, x):
    text = """g (float[2, 6] x) => (float[2, 6] y) {
        t0 = MatMul (x, w) s = SequenceConstruct (t0, x) t1 = MatMul (x, w) t2 = Tanh (t1)
        t3 = MatMul (t2, w) zero = Constant <value_int = 0> ()
        t4 = MatMul (t3, w) p = SequenceAt (s, zero) y = Add (t4, p)
    }"""
    stages = hold(build(text, w=(6, 6)), {"x": x}, ["t0", "t1", "t2", "t3", "t4"])
    assert set(stages[-1].frontier) == {"t3", "s", "zero"}


@pytest.mark.parametrize("bytes_", [1, 1 << 28])
def test_samples_are_held_as_memory_allows(bytes_, monkeypatch):
    monkeypatch.setattr(_sensitivity, "_MOST_BYTES", bytes_)
    samples = [_sensitivity._Sample({"a": np.zeros(4)}, {}) for _ in range(3)]
    assert [len(held) for held in _sensitivity._held(samples)] == ([1] * 3 if bytes_ == 1 else [3])
