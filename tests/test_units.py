# SPDX-License-Identifier: Apache-2.0
"""Fusion units: what onnxruntime fuses is found, and what it does not fuse is left alone."""

import numpy as np
import pytest

from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.units import Kind, find_units, is_softmax, readers, source_of

WEIGHTS = {
    "w": (8, 8, 3, 3),
    "point": (8, 8, 1, 1),
    "depth": (8, 1, 3, 3),
    "widened": (16, 1, 3, 3),
    "grouped": (8, 4, 3, 3),
    "stem": (8, 3, 3, 3),
    "square": (8, 8),
    "wide": (8, 16),
    "tall": (16, 8),
    "batch": (2, 8, 8),
    "vector": (8,),
    "b": (8,),
    "row": (1, 8),
    "column": (8, 1),
    "deep": (1, 1, 1, 8),
    "sixteen": (16,),
    "one": np.float32([1.0]),
    "zero": np.float32(0.0),
    "six": np.float32(6.0),
    "minus": np.float32(-1.0),
}


@pytest.fixture
def found(build):
    """Return a function: body of a graph -> its units. ``x`` is a map, ``t`` are tokens."""

    def find(body, **more):
        used = {**WEIGHTS, **more}
        text = (
            "g (float[2, 8, 6, 6] x, float[2, 3, 6, 6] image, float[4, 8] t, float[2, 4, 8] tokens)"
            f" => (float y) {{ {body} }}"
        )
        graph = import_graph(
            build(text, **{n: a for n, a in used.items() if _reads(body, n) or n in more})
        )
        return find_units(graph)

    return find


def _reads(body, name):
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return name in words


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("y = Conv (x, w)", Kind.CONV),
        ("y = Conv (x, w, b)", Kind.CONV),
        ("y = Conv <group = 2> (x, grouped)", Kind.GROUPED),
        ("y = Conv <group = 8> (x, widened)", Kind.GROUPED),
        ("y = Conv (x, point)", Kind.POINTWISE),
        ("y = Conv <group = 8> (x, depth)", Kind.DEPTHWISE),
        ("y = Conv (image, stem)", Kind.STEM),
        ("y = Gemm (t, square)", Kind.GEMM),
        ("y = Gemm <transB = 1> (t, tall, sixteen)", Kind.GEMM),
        ("y = Gemm (t, wide, sixteen)", Kind.GEMM),
        ("y = Gemm (t, square, row)", Kind.GEMM),
        ("y = MatMul (tokens, wide)", Kind.MATMUL),
        ("y = MatMul (tokens, batch)", Kind.MATMUL),
        ("y = MatMul (tokens, tokens)", Kind.PRODUCT),
        ("s = Sigmoid (x) y = Mul (x, s)", Kind.SILU),
        ("s = Sigmoid (x) y = Mul (s, x)", Kind.SILU),
        ("r = Relu (x) y = Add (x, r)", Kind.ADD),
        ("r = Relu (x) y = Mul (x, r)", Kind.MUL),
        ("r = Relu (x) y = Concat <axis = 1> (x, r)", Kind.CONCAT),
        ("y = GlobalAveragePool (x)", Kind.POOL),
        ("y = AveragePool <kernel_shape = [2, 2]> (x)", Kind.POOL),
        ("y = Sigmoid (x)", Kind.SIGMOID),
        ("y = LeakyRelu (x)", Kind.LEAKY_RELU),
        ("y = Softmax (x)", Kind.SOFTMAX),
    ],
)
def test_kind(found, body, kind):
    assert [unit.kind for unit in found(body)] == [kind]


@pytest.mark.parametrize(
    "body",
    [
        "y = Conv (x, x)",  # weights computed at run time
        "y = Conv (x, w, computed) computed = Relu (b)",
        "y = Gemm <alpha = 0.5> (t, square)",
        "y = Gemm <beta = 0.5> (t, square, b)",
        "y = Gemm <transA = 1> (t, tall)",
        "y = Gemm (t, square, one)",  # one number for all columns
        "y = MatMul (square, t)",
        "y = MatMul (tokens, vector)",
        "y = Add (x, one)",
        "y = Mul (one, x)",
        "y = Add (x, x)",
        "y = Concat <axis = 1> (x, w)",
        "y = HardSigmoid (x)",
        "y = LogSoftmax (x)",
        "y = Softmax (w)",
        "y = ConvTranspose (x, w)",
        "y = com.microsoft.Conv (x, w)",
    ],
)
def test_near_misses_are_no_units(found, body):
    assert found(body) == []


def test_a_gate_is_two_units(found):
    # squeeze and excite: no SiLU, for the Sigmoid reads something else than the Mul
    units = found("r = Relu (x) s = Sigmoid (r) y = Mul (x, s)")
    assert [unit.kind for unit in units] == [Kind.SIGMOID, Kind.MUL]
    assert [unit.interior for unit in units] == [(), ()]


def test_a_gemm_bias_per_row_is_refused(found, build):
    model = build(
        "g (float[8, 4] t) => (float[8, 8] y) { y = Gemm (t, weight, column) }",
        weight=(4, 8), column=(8, 1),
    )  # fmt: skip
    # (8, 1) has as many numbers as there are columns, but adds one to every row
    assert find_units(import_graph(model)) == []


@pytest.mark.parametrize("op", ["MatMul (ids, ids)", "Add (ids, more)", "Mul (ids, more)"])
def test_integers_are_no_product(build, op):
    text = f"g (int32[4, 4] ids, int32[4, 4] more) => (int32[4, 4] y) {{ y = {op} }}"
    assert [u for u in find_units(import_graph(build(text))) if u.kind is Kind.PRODUCT] == []


@pytest.mark.parametrize(
    ("clip", "bounds"),
    [
        ("y = Relu (c)", (0.0, np.inf)),
        ("y = Clip (c, zero, six)", (0.0, 6.0)),
        ("y = Clip (c, zero)", (0.0, np.inf)),
    ],
)
def test_what_folds_into_a_conv(found, clip, bounds):
    (unit,) = found(f"c = Conv (x, w) {clip}")
    assert unit.clip == bounds
    assert [node.op for node in unit.nodes] == ["Conv", clip.split()[2]]
    assert (unit.inputs[0].name, unit.output.name, unit.name) == ("x", "y", unit.nodes[0].name)


@pytest.mark.parametrize(
    "after",
    [
        "y = Clip (c, minus, six)",  # codes below zero would be cut by the Clip only
        "y = Clip (c, , six)",
        "y = Clip (c, zero, bound) bound = Abs (six)",
        "y = Clip (c, zero, zero)",
        "y = Clip (c)",
        "y = LeakyRelu (c)",
        "y = Relu (c) other = Neg (c)",
        "y = Sum (c, r) r = Relu (c)",
    ],
)
def test_what_does_not_fold_into_a_conv(found, after):
    (unit,) = (u for u in found(f"c = Conv (x, w) {after}") if u.kind is Kind.CONV)
    assert (unit.output.name, unit.clip, len(unit.nodes)) == ("c", None, 1)


def test_a_conv_that_is_also_an_output_is_not_fused(build):
    model = build(
        "g (float[1, 8, 6, 6] x) => (float[1, 8, 4, 4] c, float[1, 8, 4, 4] y) "
        "{ c = Conv (x, w) y = Relu (c) }",
        w=(8, 8, 3, 3),
    )
    (unit,) = find_units(import_graph(model))
    assert (unit.output.name, unit.clip) == ("c", None)


def test_a_relu_inside_a_branch_is_not_fused(build):
    # the branch may not be taken, and no kernel reaches over its border
    model = build(
        """
        g (float[1, 8, 6, 6] x, bool flag) => (float[1, 8, 4, 4] y) {
            c = Conv (x, w)
            y = If (flag) <
                then_branch = yes () => (float[1, 8, 4, 4] a) { a = Relu (c) },
                else_branch = no () => (float[1, 8, 4, 4] b) { b = Identity (other) }
            >
        }""",
        w=(8, 8, 3, 3), other=(1, 8, 4, 4),
    )  # fmt: skip
    (unit,) = find_units(import_graph(model))
    assert (unit.output.name, unit.clip) == ("c", None)


@pytest.mark.parametrize("order", ["m, bias", "bias, m"])
@pytest.mark.parametrize(("shape", "source"), [((8,), "t"), ((1, 8), "t"), ((1, 1, 8), "tokens")])
def test_bias_of_a_matmul(found, order, shape, source):
    (unit,) = found(f"m = MatMul ({source}, square) y = Add ({order})", bias=shape)
    assert [node.op for node in unit.nodes] == ["MatMul", "Add"]
    assert (unit.bias.name, unit.output.name) == ("bias", "y")


@pytest.mark.parametrize(
    "shape", [(), (1,), (4, 1), (4, 8), (2, 1, 8), (2, 4, 1)], ids=lambda s: "x".join(map(str, s))
)
def test_an_add_that_is_no_bias(found, shape):
    (unit,) = (
        u for u in found("m = MatMul (tokens, square) y = Add (m, bias)", bias=shape)
        if u.kind is Kind.MATMUL
    )  # fmt: skip
    assert unit.bias is None
    assert unit.output.name == "m"


def test_a_bias_that_adds_a_dim_is_no_bias(found):
    # (1, 1, 1, 8) on (2, 4, 8) gives (1, 2, 4, 8): a bias of eight numbers would lose the dim
    (unit,) = found("m = MatMul (tokens, square) y = Add (m, deep)")
    assert unit.bias is None
    assert unit.output.name == "m"


def test_a_product_read_twice_has_no_bias(found):
    units = found("m = MatMul (t, square) a = Add (m, b) r = Relu (m) y = Sum (a, r)")
    assert [(u.kind, u.output.name, u.bias) for u in units] == [(Kind.MATMUL, "m", None)]


@pytest.mark.parametrize(
    ("body", "axis"),
    [
        ("y = Conv (x, w)", 0),
        ("y = Conv <group = 8> (x, depth)", 0),
        ("y = Gemm (t, wide)", 1),
        ("y = Gemm <transB = 1> (t, tall)", 0),
        ("y = MatMul (t, wide)", 1),
        ("y = MatMul (tokens, batch)", 2),
    ],
)
def test_axis_of_the_output_channels(found, body, axis):
    (unit,) = found(body)
    assert unit.weight_axis == axis


def test_a_silu_has_an_interior(found):
    (unit,) = found("s = Sigmoid (x) y = Mul (x, s)")
    assert [tensor.name for tensor in unit.interior] == ["s"]
    assert [node.op for node in unit.nodes] == ["Mul", "Sigmoid"]


@pytest.mark.parametrize(
    "more", ["z = Relu (s)", "z = Mul (s, x)"], ids=["sigmoid read twice", "two products"]
)
def test_a_sigmoid_with_two_readers_is_no_silu(found, more):
    units = found(f"s = Sigmoid (x) y = Mul (x, s) {more}")
    assert units[0].kind is Kind.SIGMOID
    assert {u.kind for u in units[1:]} == {Kind.MUL}


def test_units_come_in_topological_order(found):
    body = "a = Conv (x, w) b = GlobalAveragePool (a) c = Flatten (b) y = Gemm (c, square)"
    assert [u.kind for u in found(body)] == [Kind.CONV, Kind.POOL, Kind.GEMM]


def test_movement_is_looked_through(build):
    model = build(
        """
        g (float[1, 8, 4, 4] x) => (float[1, 16, 8] y, float[1, 16, 8] p) {
            r = Reshape (x, shape)
            t = Transpose <perm = [0, 2, 1]> (r)
            y = Relu (t)
            p = Softmax (t)
        }""",
        shape=np.int64([1, 8, 16]),
    )
    graph = import_graph(model)
    tensors = graph.tensors()
    assert source_of(tensors["t"]).name == "x"
    assert [node.op for node in readers(tensors["x"])] == ["Relu", "Softmax"]
    assert is_softmax(tensors["p"])
    assert not is_softmax(tensors["t"])
