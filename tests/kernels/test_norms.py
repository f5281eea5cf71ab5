# SPDX-License-Identifier: Apache-2.0
"""Properties of folding a per-channel affine into a layer's constants."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qhyvit_onnx.kernels.norms import Affine, Layer, channels, fold_affine, norm_affine

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
