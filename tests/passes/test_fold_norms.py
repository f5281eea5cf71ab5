# SPDX-License-Identifier: Apache-2.0
"""FoldNorms does its job, keeps the function, does nothing twice, and declines near-misses."""

import numpy as np
import onnx
import pytest

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


def folded(state, model):
    """Return the model after the pass, and what the pass said; shapes come from Normalise."""
    held = state(model)
    Normalise().run(held)
    outcome = FoldNorms().run(held)
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
    assert ops(result) == ["Conv"]
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
    _, outcome = folded(state, build(text, w=(6, 8), **stats(6)))
    assert outcome.changed == 0
    assert dict(outcome.misses) == {
        "BatchNormalization: another axis than the outputs of MatMul": 1
    }


def test_a_reshape_that_mixes_channels(build, state):
    text = """
    g (float[N, 6, 6] x) => (float[N, 8, 6] y) <int64[3] t = {-1, 8, 6}>
    { h = MatMul(x, w) f = Reshape(h, t) y = BatchNormalization(f, g, b, m, v) }
    """
    _, outcome = folded(state, build(text, w=(6, 8), **stats(8)))
    assert outcome.changed == 0
    assert list(outcome.misses) == [
        "BatchNormalization: channels that do not stay whole across Reshape"
    ]


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
def test_declines(build, state, text, reason):
    shape = (8, 8, 3, 3) if "8, 6, 6] x)" in text else (8, 4, 3, 3)
    result, outcome = folded(state, build(text, w=shape, **stats(8)))
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
