# SPDX-License-Identifier: Apache-2.0
"""Properties of folding a per-channel affine into a layer's constants."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhyvit_onnx.kernels.norms import (
    Affine,
    Layer,
    absorb_affine,
    channels,
    fold_affine,
    norm_affine,
)

SIZES = st.integers(1, 5)
SEEDS = st.integers(0, 2**32 - 1)
# float32 rounding of weight and bias, then a float32 product: some units in the last place
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def layer_of(seed, c_out, c_in):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((c_out, c_in)).astype(np.float32)
    return Layer(weight, rng.standard_normal(c_out).astype(np.float32))


def affine_of(seed, size):
    rng = np.random.default_rng(seed + 1)
    return Affine(rng.uniform(-2, 2, size), rng.standard_normal(size))


@given(SIZES, SIZES, SEEDS)
def test_identity_is_a_no_op(c_out, c_in, seed):
    layer = layer_of(seed, c_out, c_in)
    weight, bias = fold_affine(layer, Affine(np.ones(c_out), np.zeros(c_out)))
    assert weight is layer.weight
    np.testing.assert_array_equal(bias, layer.bias)


@given(SIZES, SIZES, SEEDS)
def test_folding_is_applying_afterwards(c_out, c_in, seed):
    layer, affine = layer_of(seed, c_out, c_in), affine_of(seed, c_out)
    x = np.random.default_rng(seed).standard_normal((3, c_in)).astype(np.float32)
    weight, bias = fold_affine(layer, affine)
    want = (x @ layer.weight.T + layer.bias) * affine.gain + affine.offset
    np.testing.assert_allclose(x @ weight.T + bias, want, **CLOSE)


@given(SIZES, SIZES, SEEDS)
def test_two_folds_are_one_fold_of_the_composition(c_out, c_in, seed):
    layer = layer_of(seed, c_out, c_in)
    first, second = affine_of(seed, c_out), affine_of(seed ^ 1, c_out)
    both = Affine(first.gain * second.gain, first.offset * second.gain + second.offset)
    twice = fold_affine(Layer(*fold_affine(layer, first)), second)
    for got, want in zip(twice, fold_affine(layer, both), strict=True):
        np.testing.assert_allclose(got, want, **CLOSE)


@given(SIZES, SIZES, SEEDS)
def test_the_axis_of_the_outputs_is_free(c_out, c_in, seed):
    layer, affine = layer_of(seed, c_out, c_in), affine_of(seed, c_out)
    weight, bias = fold_affine(layer, affine)
    turned, same = fold_affine(Layer(layer.weight.T, layer.bias, axis=1), affine)
    np.testing.assert_array_equal(turned.T, weight)
    np.testing.assert_array_equal(same, bias)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), SEEDS)
def test_groups_of_a_transposed_convolution(groups, c_in, c_out, seed):
    """Each group's block of a (C_in, C_out / G) weight is a layer of its own."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((groups * c_in, c_out, 2, 2)).astype(np.float32)
    affine = affine_of(seed, groups * c_out)
    layer = Layer(weight, None, axis=1, groups=groups)
    assert channels(layer) == groups * c_out
    folded, bias = fold_affine(layer, affine)
    for g in range(groups):
        rows, columns = slice(g * c_in, (g + 1) * c_in), slice(g * c_out, (g + 1) * c_out)
        alone = fold_affine(
            Layer(weight[rows], None, axis=1), Affine(affine.gain[columns], affine.offset[columns])
        )
        np.testing.assert_array_equal(folded[rows], alone[0])
        np.testing.assert_array_equal(bias[columns], alone[1])


def test_one_number_serves_every_channel():
    layer = Layer(np.ones((3, 2), np.float32), None)
    weight, bias = fold_affine(layer, Affine(np.array([2.0]), np.array([0.5])))
    np.testing.assert_array_equal(weight, np.full((3, 2), 2, np.float32))
    np.testing.assert_array_equal(bias, np.full(3, 0.5, np.float32))


def test_no_bias_is_made_for_a_zero_offset():
    weight, bias = fold_affine(Layer(np.ones((3, 2)), None), Affine(np.full(3, 2.0), np.zeros(3)))
    assert bias is None
    assert weight.shape == (3, 2)


def test_norm_affine_is_the_standard():
    gamma, beta, mean, var = np.random.default_rng(0).uniform(0.1, 2, (4, 5)).astype(np.float32)
    affine = norm_affine(gamma, beta, mean, var, eps=1e-3)
    x = np.random.default_rng(1).standard_normal((7, 5))
    want = (x - mean) / np.sqrt(var.astype(np.float64) + 1e-3) * gamma + beta
    # both sides are float64
    np.testing.assert_allclose(x * affine.gain + affine.offset, want, rtol=1e-12, atol=1e-12)


def test_keeps_the_type_of_the_weight():
    layer = Layer(np.ones((2, 2), np.float16), np.zeros(2, np.float16))
    assert [a.dtype for a in fold_affine(layer, affine_of(0, 2))] == [np.float16, np.float16]


@given(SIZES, SIZES, SEEDS)
def test_absorbing_is_applying_before(c_out, c_in, seed):
    layer, affine = layer_of(seed, c_out, c_in), affine_of(seed, c_in)
    x = np.random.default_rng(seed).standard_normal((3, c_in)).astype(np.float32)
    weight, bias = absorb_affine(layer, affine)
    want = (x * affine.gain + affine.offset) @ layer.weight.T + layer.bias
    np.testing.assert_allclose(x @ weight.T + bias, want, **CLOSE)


@given(SIZES, SIZES, SIZES, SEEDS)
def test_what_one_layer_divides_the_next_gives_back(c_out, c_between, c_in, seed):
    first, second = layer_of(seed, c_between, c_in), layer_of(seed + 2, c_out, c_between)
    rng = np.random.default_rng(seed)
    scale, shift = rng.uniform(0.1, 10, c_between), rng.normal(0, 3, c_between)
    divided = Layer(*fold_affine(first, Affine(1 / scale, -shift / scale)))
    given_back = Layer(*absorb_affine(second, Affine(scale, shift)))
    x = rng.standard_normal((3, c_in)).astype(np.float32)
    outputs = [
        (x @ a.weight.T + a.bias) @ b.weight.T + b.bias
        for a, b in ((first, second), (divided, given_back))
    ]
    # as much larger as the scales are apart
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-3, atol=1e-3)


KINDS = {
    "conv": ("Conv (x, w, b)", (6, 4, 3, 3), {}),
    "conv of one axis": ("Conv (x, w, b)", (6, 4, 3), {}),
    "strided conv": ("Conv <strides = [2, 2]> (x, w, b)", (6, 4, 3, 3), {}),
    "grouped conv": ("Conv <group = 2> (x, w, b)", (6, 2, 3, 3), {"groups": 2}),
    "depthwise conv": ("Conv <group = 4> (x, w, b)", (4, 1, 3, 3), {"groups": 4}),
    "depthwise conv to twice as many": ("Conv <group = 4> (x, w, b)", (8, 1, 3, 3), {"groups": 4}),
    "transposed conv": ("ConvTranspose (x, w, b)", (4, 6, 1, 1), {"axis": 1, "input_axis": 0}),
    "grouped transposed conv": (
        "ConvTranspose <group = 2> (x, w, b)", (4, 3, 1, 1),
        {"axis": 1, "input_axis": 0, "groups": 2},
    ),
    "gemm": ("Gemm (x, w, b)", (4, 6), {"axis": 1, "input_axis": 0}),
    "turned gemm": ("Gemm <transB = 1> (x, w, b)", (6, 4), {}),
    "gemm with a factor": (
        "Gemm <alpha = 0.25> (x, w, b)", (4, 6), {"axis": 1, "input_axis": 0, "alpha": 0.25},
    ),
}  # fmt: skip


def model_of(build, call, weight, bias):
    dims = ", ".join(["2", "4", *["5"] * (weight.ndim - 2)])
    outputs = ", ".join("abcd"[: weight.ndim])
    call = call if bias is not None else call.replace(", b)", ")")
    text = f"g (float[{dims}] x) => (float[{outputs}] y) {{ y = {call} }}"
    return build(text, w=weight, **({} if bias is None else {"b": bias}))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_absorbing_into_every_kind_of_layer(build, run_model, kind, biased):
    call, shape, named = KINDS[kind]
    rng = np.random.default_rng(3)
    weight = rng.standard_normal(shape).astype(np.float32)
    layer = Layer(weight, None, **named)
    if biased:
        layer = layer._replace(bias=rng.standard_normal(channels(layer)).astype(np.float32))
    affine = affine_of(7, 4)
    x = rng.standard_normal((2, 4, *[5] * (len(shape) - 2))).astype(np.float32)
    spread = (4, *[1] * (len(shape) - 2))
    before = (x * affine.gain.reshape(spread) + affine.offset.reshape(spread)).astype(np.float32)
    (want,) = run_model(model_of(build, call, weight, layer.bias), {"x": before})
    (got,) = run_model(model_of(build, call, *absorb_affine(layer, affine)), {"x": x})
    # both round a few dozen products of float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.ptp(want))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_scale_passes_any_transposed_kernel(build, run_model, groups):
    call = f"ConvTranspose <group = {groups}, strides = [2, 2]> (x, w, b)"
    weight, x = (
        np.random.default_rng(4).standard_normal(shape).astype(np.float32)
        for shape in ((4, 6 // groups, 3, 3), (2, 4, 5, 5))
    )
    powers = Affine(np.array([0.5, 2.0, 4.0, 1.0]), np.zeros(4))
    layer = Layer(weight, None, axis=1, input_axis=0, groups=groups)
    scaled = (x * powers.gain.reshape(4, 1, 1)).astype(np.float32)
    (want,) = run_model(model_of(build, call, weight, None), {"x": scaled})
    (got,) = run_model(model_of(build, call, *absorb_affine(layer, powers)), {"x": x})
    np.testing.assert_array_equal(got, want)  # powers of two round nothing


def test_absorbing_nothing_changes_nothing():
    layer = layer_of(0, 3, 2)
    weight, bias = absorb_affine(layer, Affine(np.ones(2), np.zeros(2)))
    assert weight is layer.weight
    assert bias is layer.bias
    weight, bias = absorb_affine(layer._replace(bias=None), Affine(np.full(2, 2.0), np.zeros(2)))
    assert bias is None
    np.testing.assert_array_equal(weight, 2 * layer.weight)


def test_absorbing_keeps_the_type_of_the_weight():
    layer = Layer(np.ones((2, 2), np.float16), None)
    assert [a.dtype for a in absorb_affine(layer, affine_of(0, 2))] == [np.float16, np.float16]
