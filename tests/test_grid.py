# SPDX-License-Identifier: Apache-2.0
"""Grids: the zero point cannot leave its type, zero is a code, rounding costs half a step."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qhyvit_onnx.errors import PassError
from qhyvit_onnx.grid import TINY_SCALE, Cure, Grid, WeightGrid, grid_for, symmetric_grid

HUGE = float(np.float32(1e38))
# a range twice as wide is no float32 any more
NUMBERS = st.floats(min_value=-HUGE, max_value=HUGE, width=32)
BITS = st.integers(2, 8)


def ranges(numbers=NUMBERS):
    return st.tuples(numbers, numbers).map(sorted)


@given(st.floats(), st.integers(-1000, 1000), BITS)
def test_a_zero_point_outside_its_type_cannot_be_built(scale, zero_point, bits):
    legal_scale = np.isfinite(scale) and TINY_SCALE < scale < float(np.finfo(np.float32).max)
    if legal_scale and 0 <= zero_point < 1 << bits:
        assert Grid(scale, zero_point, bits).zero_point == zero_point
        return
    with pytest.raises(PassError):
        Grid(scale, zero_point, bits)


@pytest.mark.parametrize("zero_point", [-1, 256])
def test_zero_point_overflow_names_the_number(zero_point):
    with pytest.raises(PassError, match=rf"zero point {zero_point} is outside \[0, 255\]"):
        Grid(0.1, zero_point)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e39, 1e-38, 1e-46])
def test_a_scale_that_float32_cannot_multiply_is_refused(scale):
    with pytest.raises(PassError, match="scale"):
        Grid(scale, 0)


@given(ranges(), BITS)
@example([0.0, 0.0], 8)
@example([3.0, 3.0], 8)
@example([-3.0, -3.0], 8)
@example([2.0, 3.0], 8)
@example([-3.0, -2.0], 8)
@example([0.0, 1e-45], 8)
@example([-1e-45, 1e-45], 8)
@example([1e-45, 1e-45], 8)
@example([-HUGE, HUGE], 8)
@example([0.0, HUGE], 8)
def test_every_finite_range_has_a_legal_grid_that_holds_zero(found, bits):
    grid = grid_for(*found, bits=bits)
    assert 0 <= grid.zero_point <= grid.top == 2**bits - 1
    assert grid.fake(np.zeros(1, np.float32))[0] == 0.0
    assert grid.low <= 0.0 <= grid.high


@given(ranges(), st.floats(0, 1))
def test_rounding_costs_at_most_half_a_step_inside_the_range(found, at):
    low, high = found
    x = np.array([np.float32(low + at * (high - low))])
    if not low <= x[0] <= high:
        return
    grid = grid_for(low, high)
    # half a step; x / scale and the product are float32, 255 steps of 2^-24 each
    allowed = 0.5 * grid.scale * (1 + 255 * 2.0**-22) + 2 * TINY_SCALE
    assert abs(float(grid.fake(x)[0]) - float(x[0])) <= allowed


@given(NUMBERS)
def test_a_constant_is_exact(number):
    grid = grid_for(number, number)
    assert grid.cure is Cure.CONSTANT
    # what is smaller than two TINY_SCALE is taken for zero: no float32 kernel tells it apart
    assert abs(float(grid.fake(np.array([number], np.float32))[0]) - number) <= 2 * TINY_SCALE
    if abs(number) > 2 * TINY_SCALE:
        assert grid.fake(np.array([number], np.float32))[0] == np.float32(number)


@pytest.mark.parametrize(
    ("found", "cure", "zero_point"),
    [
        ((-1.0, 3.0), Cure.NONE, 64),
        ((0.0, 1.0), Cure.NONE, 0),
        ((-1.0, 0.0), Cure.NONE, 255),
        ((2.0, 3.0), Cure.COVER, 0),
        ((-3.0, -2.0), Cure.COVER, 255),
        ((5.0, 5.0), Cure.CONSTANT, 0),
        ((-5.0, -5.0), Cure.CONSTANT, 1),
    ],
)
def test_what_was_cured_is_named(found, cure, zero_point):
    grid = grid_for(*found)
    assert (grid.cure, grid.zero_point) == (cure, zero_point)


@pytest.mark.parametrize(
    "found", [(1.0, 0.0), (float("nan"), 1.0), (0.0, float("nan")), (-float("inf"), 0.0)]
)
def test_a_range_that_is_none_is_refused(found):
    with pytest.raises(PassError, match="not a finite interval"):
        grid_for(*found)


@given(st.floats(0, HUGE, width=32))
def test_symmetric_grid_holds_both_peaks(peak):
    grid = symmetric_grid(peak)
    assert (grid.zero_point, grid.cure) == (128, Cure.SYMMETRIC)
    # the scale is rounded to float32 once: half a unit of its last place, 127 times
    assert grid.high >= peak * (1 - 1e-6)
    assert grid.low <= -peak * (1 - 1e-6)


def test_fake_is_the_onnx_operator(run_model, build):
    model = build("""
        g (float[N] x) => (float[N] y) {
            q = QuantizeLinear (x, s, z)
            y = DequantizeLinear (q, s, z)
        }""", s=np.float32(0.037), z=np.uint8(77))  # fmt: skip
    x = np.random.default_rng(0).normal(0, 5, 5000).astype(np.float32)
    ties = np.float32(0.037) * np.arange(-300.5, 300.5, dtype=np.float32)
    for values in (x, ties):
        want = run_model(model, {"x": values})[0]
        np.testing.assert_array_equal(Grid(0.037, 77).fake(values), want)


@given(st.integers(0, 2**32 - 1), st.sampled_from([7, 64, 127]), st.integers(0, 3))
def test_weight_codes_stay_in_their_limit(seed, limit, axis):
    weight = np.random.default_rng(seed).standard_cauchy((3, 4, 5, 2)).astype(np.float32)
    scale = np.full(weight.shape[axis], 0.05, np.float32)
    codes = WeightGrid(scale, axis, limit).codes(weight)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() <= limit


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_weight_scales_spread_along_their_axis(axis):
    weight = np.random.default_rng(0).standard_normal((4, 4, 4)).astype(np.float32)
    peaks = np.abs(np.moveaxis(weight, axis, 0).reshape(4, -1)).max(axis=1)
    grid = WeightGrid((peaks / 127).astype(np.float32), axis)
    steps = np.moveaxis(np.abs(grid.fake(weight) - weight), axis, 0).reshape(4, -1).max(axis=1)
    assert not grid.per_tensor
    # half a step of the channel's own scale; float32 products beyond
    assert (steps <= 0.5 * grid.scale * (1 + 1e-4)).all()
    codes = np.moveaxis(grid.codes(weight), axis, 0).reshape(4, -1)
    assert (np.abs(codes).max(axis=1) == 127).all()


def test_one_scale_for_the_whole_weight():
    grid = WeightGrid(np.array([0.5], np.float32), 0)
    weight = np.array([[1.2, -0.2], [0.75, 100.0]], np.float32)
    assert grid.per_tensor
    np.testing.assert_array_equal(grid.codes(weight), [[2, 0], [2, 127]])  # 1.5 rounds to even
    np.testing.assert_array_equal(grid.fake(weight), [[1.0, 0.0], [1.0, 63.5]])
