# SPDX-License-Identifier: Apache-2.0
"""FoldNorms does its job, keeps the function, does nothing twice, and declines near-misses."""

import re

import numpy as np
import onnx
import pytest

from qhyvit_onnx.config import Scope
from qhyvit_onnx.passes.fold_norms import FoldNorms
from qhyvit_onnx.passes.normalise import Normalise

X = np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)


def stats(channels):
    """Return the constants of a BatchNormalization far from the identity."""
    rng = np.random.default_rng(channels)
    gamma, mean, var = (
        rng.uniform(0.5, 2, channels),
        rng.normal(0, 1, channels),
        rng.uniform(0.1, 4, channels),
    )
    beta = rng.normal(0, 1, channels)
    return {
        name: a.astype(np.float32)
        for name, a in (("g", gamma), ("b", beta), ("m", mean), ("v", var))
    }


CONV_BN = """
g (float[N, 4, 6, 6] x) => (float[N, 8, A, B] y)
{{
    c = Conv<group = {group}>({inputs})
    y = BatchNormalization<epsilon = 0.001>(c, g, b, m, v)
    {extra}
}}
"""


def folded(state, model, scope=Scope.ALL):
    """Return the model after the pass, and what the pass said; shapes come from Normalise."""
    held = state(model)
    Normalise().run(held)
    outcome = FoldNorms(scope).run(held)
    result = held.model()
    onnx.checker.check_model(result)
    return result, outcome


def ops(model):
    return [node.op_type for node in model.graph.node]


def assert_same(run_model, before, after, feeds):
    for want, got in zip(run_model(before, feeds), run_model(after, feeds), strict=True):
        # weights are rounded once more: 1e-4 of the output's range is what a fold may cost
        assert np.abs(got - want).max() <= 1e-4 * np.ptp(want)


def test_golden(build, state, golden):
    text = CONV_BN.format(group=1, inputs="x, w, bias", extra="")
    golden(
        "fold_norms/conv_bn", folded(state, build(text, w=(8, 4, 3, 3), bias=(8,), **stats(8)))[0]
    )


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("inputs", ["x, w", "x, w, bias"])
def test_conv(build, state, run_model, group, inputs):
    text = CONV_BN.format(group=group, inputs=inputs, extra="")
    given = {"bias": (8,)} if "bias" in inputs else {}
    model = build(text, w=(8, 4 // group, 3, 3), **given, **stats(8))
    result, outcome = folded(state, model)
    assert outcome.changed == 1
    # with as many groups as channels it widens: then it reads copies of its channels
    assert ops(result) == (["Gather", "Conv"] if group == 4 else ["Conv"])
    assert_same(run_model, model, result, {"x": X})


@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(build, state, run_model, group):
    text = CONV_BN.format(group=group, inputs="x, w", extra="").replace("Conv<", "ConvTranspose<")
    model = build(text, w=(4, 8 // group, 2, 2), **stats(8))
    result, _ = folded(state, model)
    assert ops(result) == ["ConvTranspose"]
    assert_same(run_model, model, result, {"x": X})


@pytest.mark.parametrize(
    ("attrs", "constants"),
    [
        ("alpha = 1.0", {"w": (6, 8)}),
        ("transB = 1", {"w": (8, 6), "c": (8,)}),
        ("alpha = 0.5, beta = 2.0", {"w": (6, 8), "c": (1, 8)}),
        ("transA = 0, beta = 0.5", {"w": (6, 8), "c": ()}),
    ],
)
def test_gemm(build, state, run_model, attrs, constants):
    text = f"""
    g (float[N, 6] x) => (float[N, 8] y)
    {{ h = Gemm<{attrs}>(x, {", ".join(constants)}) y = BatchNormalization(h, g, b, m, v) }}
    """
    model = build(text, **constants, **stats(8))
    result, outcome = folded(state, model)
    assert outcome.changed == 1
    assert ops(result) == ["Gemm"]
    assert_same(run_model, model, result, {"x": X[0, 0]})


MATMUL_BN = """
g (float[N, 6, 6] x) => (float[N, 6, 8] y) <int64[2] flat = {{-1, 8}}, int64[3] back = {{-1, 6, 8}}>
{{
    h = MatMul(x, w)
    {bias}
    f = Reshape({last}, flat)
    n = BatchNormalization(f, g, b, m, v)
    y = Reshape(n, back)
}}
"""


@pytest.mark.parametrize("bias", ["", "k = Add(h, c)", "k = Add(c, h)"])
def test_matmul_with_rows_flattened(build, state, run_model, bias):
    model = build(
        MATMUL_BN.format(bias=bias, last="k" if bias else "h"),
        w=(6, 8), **({"c": (8,)} if bias else {}), **stats(8),
    )  # fmt: skip
    result, outcome = folded(state, model)
    assert outcome.changed == 1
    assert ops(result) == ["MatMul", "Add"]
    assert_same(run_model, model, result, {"x": X[0]})


def test_matmul_with_columns_turned(build, state, run_model):
    text = """
    g (float[N, 6, 6] x) => (float[N, 8, 6] y)
    { h = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(h) y = BatchNormalization(t, g, b, m, v) }
    """
    model = build(text, w=(6, 8), **stats(8))
    result, _ = folded(state, model)
    assert "BatchNormalization" not in ops(result)
    assert_same(run_model, model, result, {"x": X[0]})


def test_matmul_whose_columns_do_not_stay_whole(build, state):
    text = """
    g (float[N, 6, 6] x) => (float[N, 6, 2, 4] y) <int64[4] t = {-1, 6, 2, 4}>
    { h = MatMul(x, w) f = Reshape(h, t) y = BatchNormalization(f, g, b, m, v) }
    """
    _, outcome = folded(state, build(text, w=(6, 8), **stats(6)), Scope.OFF)
    assert outcome.changed == 0
    assert dict(outcome.misses) == {
        "BatchNormalization: another axis than the outputs of MatMul": 1
    }


def test_a_reshape_that_mixes_channels(build, state):
    text = """
    g (float[N, 6, 6] x) => (float[N, 8, 6] y) <int64[3] t = {-1, 8, 6}>
    { h = MatMul(x, w) f = Reshape(h, t) y = BatchNormalization(f, g, b, m, v) }
    """
    _, outcome = folded(state, build(text, w=(6, 8), **stats(8)), Scope.OFF)
    assert outcome.changed == 0
    assert list(outcome.misses) == ["BatchNormalization: another axis than the outputs of MatMul"]


def test_constant_scales_and_offsets(build, state, run_model):
    text = """
    g (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y) <float half = {0.5}>
    {
        c = Conv(x, w)
        p = Add(c, per_channel)
        q = Mul(half, p)
        r = Sub(q, per_channel)
        s = Div(r, half)
        y = Relu(s)
    }
    """
    model = build(text, w=(8, 4, 1, 1), per_channel=(1, 8, 1, 1))
    result, outcome = folded(state, model)
    assert outcome.changed == 4
    assert ops(result) == ["Conv", "Relu"]
    assert_same(run_model, model, result, {"x": X})


def test_a_constant_that_is_not_per_channel_stays(build, state):
    text = """
    g (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y) { c = Conv(x, w) y = Add(c, map) }
    """
    result, outcome = folded(state, build(text, w=(8, 4, 1, 1), map=(1, 1, 6, 6)))
    assert outcome.changed == 0
    assert ops(result) == ["Conv", "Add"]


@pytest.mark.parametrize(("op", "number"), [("Add", -np.inf), ("Mul", np.inf), ("Div", 0.0)])
def test_a_constant_that_is_not_finite_stays(build, state, op, number):
    text = f"g (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y) {{ c = Conv(x, w) y = {op}(c, k) }}"
    mask = np.ones((1, 8, 1, 1), np.float32)
    mask[0, 3] = number
    result, outcome = folded(state, build(text, w=(8, 4, 1, 1), k=mask))
    assert outcome.changed == 0
    assert ops(result) == ["Conv", op]


def test_a_constant_that_widens_the_output_stays(build, state):
    text = "g (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y) { c = Conv(x, w) y = Mul(c, wide) }"
    result, outcome = folded(state, build(text, w=(1, 4, 1, 1), wide=(1, 8, 1, 1)))
    assert outcome.changed == 0
    assert ops(result) == ["Conv", "Mul"]


def test_second_run_changes_nothing(build, state):
    model = build(MATMUL_BN.format(bias="", last="h"), w=(6, 8), **stats(8))
    once, _ = folded(state, model)
    twice, outcome = folded(state, once)
    assert outcome.changed == 0
    assert twice.graph == once.graph


def test_a_shared_weight_keeps_its_value(build, state, run_model):
    text = CONV_BN.format(group=1, inputs="x, w", extra="z = Conv(x, w)")
    model = build(text.replace("B] y)", "B] y, float[N, 8, C, D] z)"), w=(8, 4, 3, 3), **stats(8))
    result, outcome = folded(state, model)
    assert outcome.changed == 1
    assert_same(run_model, model, result, {"x": X})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            CONV_BN.format(group=1, inputs="x, w", extra="z = Relu(c)").replace(
                "B] y)", "B] y, float[N, 8, C, D] z)"
            ),
            "other readers of the output of Conv",
        ),
        (
            CONV_BN.format(group=1, inputs="x, w", extra="").replace(
                "B] y)", "B] y, float[N, 8, C, D] c)"
            ),
            "other readers of the output of Conv",
        ),
        (
            CONV_BN.format(group=1, inputs="x, w", extra="").replace(
                "{", "{ vv = ReduceMean<axes = [0, 2, 3], keepdims = 0>(x8)", 1
            ).replace("m, v)", "m, vv)").replace("6] x)", "6] x, float[N, 8, 6, 6] x8)"),
            "statistics that are not constant",
        ),
        (
            CONV_BN.format(group=1, inputs="x, w", extra="").replace(
                "c = Conv<group = 1>(x, w)", "r = Conv(x, w) c = Relu(r)"
            ),
            "no layer before it",
        ),
        (
            """
            g (float[N, 8, 6, 6] x) => (float[N, 8, A, B] y)
            { n = BatchNormalization(x, g, b, m, v) y = Conv(n, w) }
            """,
            "a layer after it, none before it",
        ),
    ],
)  # fmt: skip
def test_the_layer_before_declines(build, state, text, reason):
    shape = (8, 8, 3, 3) if "8, 6, 6] x)" in text else (8, 4, 3, 3)
    result, outcome = folded(state, build(text, w=shape, **stats(8)), Scope.OFF)
    assert outcome.changed == 0
    assert dict(outcome.misses) == {f"BatchNormalization: {reason}": 1}
    assert "BatchNormalization" in ops(result)


def test_declines_training_mode(build, state):
    text = """
    g (float[N, 4, 6, 6] x) => (float[N, 8, 4, 4] y)
    { c = Conv(x, w) y, rm, rv = BatchNormalization<training_mode = 1>(c, g, b, m, v) }
    """
    _, outcome = folded(state, build(text, w=(8, 4, 3, 3), **stats(8)))
    assert outcome.changed == 0
    assert list(outcome.misses) == ["BatchNormalization: BatchNormalization in training mode"]


TOKENS, MAP = "float[N, 6, 8] x", "float[N, 8, 6, 6] x"
OUT3, OUT4 = "float[a, b, c] y", "float[a, b, c, d] y"
LAYER_NORM = "n = LayerNormalization(x, g, b)"
BATCH_NORM = "r = Relu(x) n = BatchNormalization(r, g, b, m, v)"
GROUP_NORM = """
    flat = Reshape(x, merged) i = InstanceNormalization(flat, unit, nought)
    apart = Reshape(i, parted) scaled = Mul(apart, each) n = Add(scaled, other)
"""
CONSTANTS = {
    **stats(8), "w": (8, 8), "w2": (8, 4), "square": (8, 8), "wide": (16, 4), "tall": (3, 4),
    "rest": (5, 4), "stack": (2, 8, 4), "bias": (8,), "k": (5, 8, 3, 3), "one": (5, 8, 1, 1),
    "deep1": (8, 8, 1, 1),
    "deep": (8, 1, 3, 3), "grouped": (6, 4, 3, 3), "two": (5, 16, 1, 1), "up": (8, 5, 2, 2),
    "each": (8, 1, 1), "other": (1, 8, 1, 1), "unit": np.float32([1]), "nought": np.float32([0]),
    "merged": np.int64([0, 1, -1]), "parted": np.int64([0, 8, 6, 6]), "none": np.zeros(8, "f4"),
    "parts": np.int64([3, 5]), "fold": np.int64([0, 8, 2, 3]), "zero": np.int64([0]),
}  # fmt: skip


def written(build, head, body, outputs):
    """Return a model, with the constants that its body names."""
    words = set(re.findall(r"\w+", body)) & set(CONSTANTS)
    text = f"g ({head}) => ({outputs}) {{ {body} }}"
    return build(text, **{name: CONSTANTS[name] for name in words})


def drawn_feeds(model):
    rng = np.random.default_rng(2)
    shapes = {
        info.name: [dim.dim_value or 2 for dim in info.type.tensor_type.shape.dim]
        for info in model.graph.input
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


FORWARD = {
    "queries, keys, values": (
        TOKENS, f"{LAYER_NORM} q = MatMul(n, w) p = MatMul(n, square) o = MatMul(n, w)"
        " s = Add(q, p) y = Mul(s, o)", OUT3,
        ["LayerNormalization", "MatMul", "MatMul", "MatMul", "Add", "Add", "Add", "Add", "Mul"],
    ),
    "a layer with a bias": (
        TOKENS, f"{LAYER_NORM} p = MatMul(n, w) y = Add(bias, p)", OUT3,
        ["LayerNormalization", "MatMul", "Add"],
    ),
    "a norm without an offset": (
        TOKENS, "n = LayerNormalization(x, g) y = MatMul(n, w)", OUT3,
        ["LayerNormalization", "MatMul"],
    ),
    "stacked weights, no offset": (
        "float[2, 6, 8] x", "n = LayerNormalization(x, g) y = MatMul(n, stack)", OUT3,
        ["LayerNormalization", "MatMul"],
    ),
    "tokens that become a map": (
        TOKENS, f"{LAYER_NORM} t = Transpose<perm = [0, 2, 1]>(n) f = Reshape(t, fold)"
        " y = Conv(f, one)", OUT4, ["LayerNormalization", "Transpose", "Reshape", "Conv"],
    ),
    "the mean of the tokens": (
        TOKENS, f"{LAYER_NORM} t = ReduceMean<axes = [1], keepdims = 0>(n) y = Gemm(t, w2)",
        "float[a, b] y", ["LayerNormalization", "ReduceMean", "Gemm"],
    ),
    "one token": (
        TOKENS, f"{LAYER_NORM} t = Gather<axis = 1>(n, zero) y = MatMul(t, w2)", OUT3,
        ["LayerNormalization", "Gather", "MatMul", "Add"],
    ),
    "parts of the channels": (
        TOKENS, f"{LAYER_NORM} p, q = Split<axis = 2>(n, parts) s = MatMul(p, tall)"
        " t = MatMul(q, rest) y = Add(s, t)", OUT3,
        ["LayerNormalization", "Split", "MatMul", "MatMul", "Add", "Add", "Add"],
    ),
    "the channels twice": (
        TOKENS, f"{LAYER_NORM} c = Concat<axis = 2>(n, n) y = MatMul(c, wide)", OUT3,
        ["LayerNormalization", "Concat", "MatMul", "Add"],
    ),
    "beside other channels": (
        TOKENS, f"{LAYER_NORM} c = Concat<axis = 2>(x, n) y = MatMul(c, wide)", OUT3,
        ["LayerNormalization", "Concat", "MatMul", "Add"],
    ),
    "two norms read by one layer": (
        TOKENS, f"{LAYER_NORM} r = Relu(x) o = LayerNormalization(r, g, bias)"
        " c = Concat<axis = 2>(o, n) y = MatMul(c, wide)", OUT3,
        ["LayerNormalization", "Relu", "LayerNormalization", "Concat", "MatMul", "Add"],
    ),
    "two layers": (
        MAP, f"{BATCH_NORM} p = Conv(n, k) q = Conv<group = 8>(n, deep, bias)"
        " s = GlobalAveragePool(p) t = GlobalAveragePool(q) y = Concat<axis = 1>(s, t)", OUT4,
        ["Relu", "Conv", "Conv", "GlobalAveragePool", "GlobalAveragePool", "Concat"],
    ),
    "a grouped convolution": (
        MAP, f"{BATCH_NORM} y = Conv<group = 2>(n, grouped)", OUT4, ["Relu", "Conv"],
    ),
    "padding without an offset": (
        MAP, "r = Relu(x) n = BatchNormalization(r, g, none, none, v)"
        " y = Conv<pads = [1, 1, 1, 1]>(n, k)", OUT4, ["Relu", "Conv"],
    ),
    "a transposed convolution, no offset": (
        MAP, "r = Relu(x) n = BatchNormalization(r, g, none, none, v) y = ConvTranspose(n, up)",
        OUT4, ["Relu", "ConvTranspose"],
    ),
    "a classifier": (
        MAP, f"{BATCH_NORM} p = GlobalAveragePool(n) f = Flatten(p) y = Gemm(f, w2)",
        "float[a, b] y", ["Relu", "GlobalAveragePool", "Flatten", "Gemm"],
    ),
    "norm, scale and offset": (
        MAP, f"{BATCH_NORM} s = Mul(each, n) o = Sub(other, s) y = Conv(o, k)", OUT4,
        ["Relu", "Conv"],
    ),
    "one group": (
        MAP, f"{GROUP_NORM} y = Conv(n, one)", OUT4,
        ["Reshape", "InstanceNormalization", "Reshape", "Conv"],
    ),
    "a constant factor": (
        TOKENS, "s = Sigmoid(x) n = Div(s, bias) y = MatMul(n, w)", OUT3, ["Sigmoid", "MatMul"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARD)
def test_the_layers_after_take_over(build, state, run_model, name):
    head, body, outputs, left = FORWARD[name]
    model = written(build, head, body, outputs)
    result, outcome = folded(state, model)
    assert outcome.changed > 0
    assert not outcome.misses
    assert sorted(ops(result)) == sorted(left)
    assert_plain_norms(result)
    assert_same(run_model, model, result, drawn_feeds(model))


def assert_plain_norms(model):
    """Nothing is left of the scales and offsets of LayerNormalization."""
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            assert len(node.input) == 2
            np.testing.assert_array_equal(held[node.input[1]], 1.0)


@pytest.mark.parametrize("name", FORWARD)
def test_a_second_run_finds_nothing_after_either(build, state, name):
    once, _ = folded(state, written(build, *FORWARD[name][:3]))
    twice, outcome = folded(state, once)
    assert outcome.changed == 0
    assert twice.graph.node == once.graph.node
    assert twice.graph.initializer == once.graph.initializer


@pytest.mark.parametrize("case", ["queries, keys, values", "two layers", "one group"])
def test_golden_after(build, state, golden, case):
    stem = {"queries, keys, values": "layer_norm", "two layers": "batch_norm"}
    golden(
        f"fold_norms/{stem.get(case, 'group_norm')}",
        folded(state, written(build, *FORWARD[case][:3]))[0],
    )


@pytest.mark.parametrize("scope", [Scope.NORMS, Scope.ALL])
def test_both_wider_scopes_fold_forward(build, state, scope):
    _, outcome = folded(state, written(build, TOKENS, *FORWARD["a layer with a bias"][1:3]), scope)
    assert outcome.note == (
        "folded 0 of 0 BatchNormalization, 1 LayerNormalization, 0 constant scales and offsets"
    )


@pytest.mark.parametrize("name", ["a layer with a bias", "two layers", "one group"])
def test_off_leaves_what_no_layer_before_takes(build, state, name):
    model = written(build, *FORWARD[name][:3])
    result, outcome = folded(state, model, Scope.OFF)
    assert outcome.changed == 0
    assert sorted(ops(result)) == sorted(ops(model))


LAYER, BATCH = "LayerNormalization", "BatchNormalization"
NOT_FORWARD = {
    "something else reads it": (
        TOKENS, f"{LAYER_NORM} p = MatMul(n, w) r = Relu(n) y = Add(p, r)", OUT3,
        {f"{LAYER}: Relu is no layer": 1},
    ),
    "a residual reads it": (
        TOKENS, f"{LAYER_NORM} p = MatMul(n, square) y = Add(p, n)", OUT3,
        {f"{LAYER}: Add is no layer": 1},
    ),
    "the user reads it": (
        TOKENS, f"{LAYER_NORM} y = MatMul(n, w)", "float[a, b, c] y, float[d, e, f] n",
        {f"{LAYER}: a graph output": 1},
    ),
    "the user reads it behind movement": (
        TOKENS, f"{LAYER_NORM} y = MatMul(n, w) t = Transpose<perm = [0, 2, 1]>(n)",
        "float[a, b, c] y, float[d, e, f] t", {f"{LAYER}: a graph output": 1},
    ),
    "a nonlinearity lies between": (
        TOKENS, f"{LAYER_NORM} r = Sigmoid(n) y = MatMul(r, w)", OUT3,
        {f"{LAYER}: Sigmoid is no layer": 1},
    ),
    "it is the right operand": (
        TOKENS, f"{LAYER_NORM} t = Transpose<perm = [0, 2, 1]>(n) p = MatMul(n, w)"
        " z = MatMul(x, t) y = MatMul(z, p)", OUT3, {f"{LAYER}: MatMul of two activations": 1},
    ),
    "a layer sums over another axis": (
        "float[N, 8, 8] x", f"{LAYER_NORM} t = Transpose<perm = [0, 2, 1]>(n) y = MatMul(t, w)",
        OUT3, {f"{LAYER}: channels that are not the inputs of MatMul": 1},
    ),
    "stacked weights with an offset": (
        "float[2, 6, 8] x", f"{LAYER_NORM} y = MatMul(n, stack)", OUT3,
        {f"{LAYER}: a layer after it pads, and the padding has no offset": 1},
    ),
    "padding": (
        MAP, f"{BATCH_NORM} y = Conv<pads = [1, 1, 1, 1]>(n, k)", OUT4,
        {f"{BATCH}: a layer after it, none before it": 1,
         f"{BATCH}: a layer after it pads, and the padding has no offset": 1},
    ),
    "padding by name": (
        MAP, f'{BATCH_NORM} y = Conv<auto_pad = "SAME_UPPER">(n, k)', OUT4,
        {f"{BATCH}: a layer after it, none before it": 1,
         f"{BATCH}: a layer after it pads, and the padding has no offset": 1},
    ),
    "a transposed kernel": (
        MAP, f"{BATCH_NORM} y = ConvTranspose(n, up)", OUT4,
        {f"{BATCH}: a layer after it, none before it": 1,
         f"{BATCH}: a layer after it pads, and the padding has no offset": 1},
    ),
    "one of two layers pads": (
        MAP, f"{BATCH_NORM} p = Conv(n, one) q = Conv<pads = [1, 1, 1, 1]>(n, k) y = Add(p, q)",
        OUT4,
        {f"{BATCH}: a layer after it, none before it": 1,
         f"{BATCH}: a layer after it pads, and the padding has no offset": 1},
    ),
    "no layer at all": (
        MAP, f"{BATCH_NORM} y = Sigmoid(n)", OUT4,
        {f"{BATCH}: no layer before it": 1, f"{BATCH}: Sigmoid is no layer": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_FORWARD)
def test_the_layers_after_decline(build, state, run_model, name):
    """A norm keeps its constants; a BatchNormalization becomes Mul and Add."""
    head, body, outputs, misses = NOT_FORWARD[name]
    model = written(build, head, body, outputs)
    result, outcome = folded(state, model)
    assert dict(outcome.misses) == misses
    batch_norms = ops(model).count(BATCH)
    assert outcome.changed == batch_norms
    left = [op for op in ops(model) if op != BATCH] + ["Mul", "Add"] * batch_norms
    assert sorted(ops(result)) == sorted(left)
    assert_same(run_model, model, result, drawn_feeds(model))
    twice, again = folded(state, result)
    assert again.changed == 0
    assert twice.graph == result.graph


def test_a_group_norm_read_by_a_residual_stays(build, state):
    model = written(build, MAP, f"{GROUP_NORM} p = Conv(n, deep1) y = Add(n, p)", OUT4)
    result, outcome = folded(state, model)
    assert outcome.changed == 0
    assert sorted(ops(result)) == sorted(ops(model))


def test_control_flow_that_reads_a_norm_keeps_it(build, state):
    body = f"""{LAYER_NORM} p = MatMul(n, w)
        e = If(c) <then_branch = t () => (float[h, i, j] u) {{ u = MatMul(n, square) }},
                   else_branch = f () => (float[k, l, o] s) {{ s = Relu(x) }}>
        y = Add(p, e)"""
    _, outcome = folded(state, written(build, f"{TOKENS}, bool c", body, OUT3))
    assert outcome.changed == 0
    assert dict(outcome.misses) == {f"{LAYER}: a reader inside control flow": 1}


def test_a_gelu_keeps_its_constants(build, state):
    """Its last factor is one number, and its first a divisor: onnxruntime must know it again."""
    body = """d = Div(x, roots) e = Erf(d) f = Add(e, ones) m = Mul(x, f) h = Mul(m, halves)
        y = MatMul(h, w)"""
    arrays = {"roots": np.full(1, 2**0.5), "ones": np.ones(1), "halves": np.full(1, 0.5)}
    model = build(
        f"g ({TOKENS}) => ({OUT3}) {{ {body} }}",
        w=(8, 8), **{name: a.astype(np.float32) for name, a in arrays.items()},
    )  # fmt: skip
    result, outcome = folded(state, model)
    assert outcome.changed == 0
    assert len(ops(result)) == 6


def test_the_bias_of_a_layer_is_not_moved_on(build, state):
    body = "p = MatMul(x, w) q = Add(p, bias) y = MatMul(q, square)"
    result, outcome = folded(state, written(build, TOKENS, body, OUT3))
    assert outcome.changed == 0
    assert ops(result) == ["MatMul", "Add", "MatMul"]


def test_constants_shared_by_two_norms(build, state, run_model):
    """One can be folded, the other cannot: it keeps the values."""
    body = f"{LAYER_NORM} p = MatMul(n, square) o = LayerNormalization(p, g, b) y = Relu(o)"
    model = written(build, TOKENS, body, OUT3)
    result, outcome = folded(state, model)
    assert outcome.changed == 1
    assert_same(run_model, model, result, drawn_feeds(model))
