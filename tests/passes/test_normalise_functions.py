# SPDX-License-Identifier: Apache-2.0
"""Normalise writes decomposed functions as one op, and only where that is what they are."""

import numpy as np
import pytest

X = np.random.default_rng(0).standard_normal((2, 4, 6, 8)).astype(np.float32)

LAYER_NORM = """
g (float[N, T, 8] x) => (float[N, T, 8] y) <float two = {{2.0}}, float eps = {{0.00001}}>
{{
    mean = ReduceMean<axes = [-1]>(x)
    centred = Sub(x, mean)
    {square}
    variance = ReduceMean<axes = [-1]>(square)
    spread = Add({spread})
    deviation = Sqrt(spread)
    norm = Div(centred, deviation)
    {affine}
}}
"""
GAMMA_BETA = "scaled = Mul(norm, gamma) y = Add(beta, scaled)"


@pytest.mark.parametrize(
    "parts",
    [
        ("square = Pow(centred, two)", "variance, eps", GAMMA_BETA),
        ("square = Mul(centred, centred)", "eps, variance", GAMMA_BETA),
        ("again = Sub(x, mean) square = Pow(again, two)", "variance, eps", GAMMA_BETA),
        ("square = Pow(centred, two)", "variance, eps", "y = Mul(norm, gamma)"),
        ("square = Pow(centred, two)", "variance, eps", "y = Relu(norm)"),
    ],
)
def test_layer_norm_becomes_one_op(build, normalised, ops, assert_same, parts):
    square, spread, affine = parts
    text = LAYER_NORM.format(square=square, spread=spread, affine=affine)
    used = {name: (8,) for name in ("gamma", "beta") if name in affine}
    model = build(text, **used)
    result, outcome = normalised(model)
    assert [op for op in ops(result) if op != "Relu"] == ["LayerNormalization"]
    assert outcome.changed > 0
    assert_same(model, result, {"x": X[0]})


@pytest.mark.parametrize(
    "change",
    [
        ("variance = ReduceMean<axes = [-1]>", "variance = ReduceMean<axes = [1]>"),
        ("y)", "y, float[N, T, 8] centred)"),
        ("Pow(centred, two)", "Pow(centred, eps)"),
    ],
)
def test_leaves_what_only_looks_like_a_layer_norm(build, normalised, ops, change):
    text = LAYER_NORM.format(
        square="square = Pow(centred, two)",
        spread="variance, eps",
        affine=GAMMA_BETA,
    )
    result, _ = normalised(build(text.replace(*change, 1), gamma=(8,), beta=(8,)))
    assert "LayerNormalization" not in ops(result)


def test_a_positional_embedding_is_no_bias(build, normalised, ops, assert_same):
    text = LAYER_NORM.format(
        square="square = Pow(centred, two)", spread="variance, eps",
        affine="y = Add(norm, embedding)",
    )  # fmt: skip
    model = build(text, embedding=(6, 8))
    result, _ = normalised(model)
    assert ops(result) == ["LayerNormalization", "Add"]
    assert_same(model, result, {"x": X[0]})


@pytest.mark.parametrize(
    "body",
    [
        "s = Add(x, three) c = Clip(s, zero, six) p = Mul(x, c) y = Div(p, six)",
        "s = Add(three, x) c = Clip(s, zero, six) d = Div(c, six) y = Mul(d, x)",
        "s = Add(x, three) c = Clip(s, zero, six) p = Mul(c, x) y = Mul(sixth, p)",
        "s = Add(x, three) r = Relu(s) c = Min(r, six) p = Mul(x, c) y = Div(p, six)",
        "c = HardSigmoid<alpha = 0.1666667, beta = 0.5>(x) y = Mul(x, c)",
    ],
)
def test_hard_swish_becomes_one_op(build, normalised, ops, assert_same, body):
    text = f"""
    g (float[N, 4, 6, 8] x) => (float[N, 4, 6, 8] y)
    <float three = {{3.0}}, float zero = {{0.0}}, float six = {{6.0}}, float sixth = {{0.1666667}}>
    {{ {body} }}
    """
    model = build(text)
    result, _ = normalised(model)
    assert ops(result) == ["HardSwish"]
    assert_same(model, result, {"x": 3 * X})


@pytest.mark.parametrize("opset", [17, 20])
def test_gelu_becomes_an_op_where_there_is_one(build, normalised, ops, assert_same, opset):
    text = f"""
    <ir_version: 8, opset_import: ["": {opset}]>
    g (float[N, 4, 6, 8] x) => (float[N, 4, 6, 8] y)
    <float root = {{1.4142135}}, float one = {{1.0}}, float half = {{0.5}}>
    {{ d = Div(x, root) e = Erf(d) p = Add(e, one) m = Mul(x, p) y = Mul(m, half) }}
    """
    model = build(text)
    result, _ = normalised(model)
    assert ("Erf" if opset == 17 else "Gelu") in ops(result)
    assert_same(model, result, {"x": X})


def test_softmax_becomes_one_op(build, normalised, ops, assert_same):
    text = """
    g (float[N, 4, 6, 8] x) => (float[N, 4, 6, 8] y)
    { p = ReduceMax<axes = [1]>(x) c = Sub(x, p) e = Exp(c) t = ReduceSum(e, axis) y = Div(e, t) }
    """
    model = build(text, axis=np.array([1]))
    result, _ = normalised(model)
    assert ops(result) == ["Softmax"]
    assert_same(model, result, {"x": X})
