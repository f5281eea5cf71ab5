# SPDX-License-Identifier: Apache-2.0
"""The error model of range folding against rounding itself, and the scales against least squares.

One layer reads Gaussian channels of different sizes and means; activations and weights are rounded
to real grids, and what the outputs lose is measured.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhyvit_onnx.kernels.equalize import (
    ACTIVATION_LEVELS,
    SMALLEST,
    WEIGHT_LEVELS,
    Moments,
    Weight,
    activation_noise,
    bounded,
    centred,
    equalizing,
    growth,
    level,
    signal,
    step,
    weight_noise,
    weight_of,
)

SEEDS = st.integers(0, 2**32 - 1)
CHANNELS, ROWS, SAMPLES = 12, 16, 20_000


@pytest.fixture(params=range(4))
def case(request):
    """Return activations (SAMPLES, CHANNELS), a weight (ROWS, CHANNELS), a scale and a shift."""
    rng = np.random.default_rng(request.param)
    sizes, means = np.exp(rng.uniform(-1, 1, CHANNELS)), rng.normal(0, 2, CHANNELS)
    x = rng.standard_normal((SAMPLES, CHANNELS)) * sizes + means
    weight = rng.standard_normal((ROWS, CHANNELS)) * np.exp(rng.uniform(-1, 1, CHANNELS))
    return x, weight, np.exp(rng.uniform(-1, 1, CHANNELS)), means + rng.normal(0, 1, CHANNELS)


def seen_of(x):
    """Return the moments of the columns of ``x``."""
    return Moments(x.min(axis=0), x.max(axis=0), x.mean(axis=0), np.square(x).mean(axis=0))


def summary(weight):
    return weight_of(weight, np.arange(weight.shape[1]), 1)


def rounded(values, step_):
    return step_ * np.rint(values / step_)


def test_one_step_serves_the_widest_channel_and_zero(case):
    x, _, scale, shift = case
    inside = (x - shift) / scale
    span = max(inside.max(), 0.0) - min(inside.min(), 0.0)
    found = step(seen_of(x), np.arange(CHANNELS), scale, shift)
    assert found == pytest.approx(span / ACTIVATION_LEVELS)


@pytest.mark.parametrize(("offset", "low", "high"), [(30.0, 0.0, 1.0), (-30.0, 1.0, 0.0)])
def test_a_one_sided_range_reaches_to_zero(offset, low, high):
    x = np.random.default_rng(0).standard_normal((100, 3)) + offset
    ends = x.max() if offset > 0 else x.min()
    found = step(seen_of(x), np.arange(3), np.ones(3), np.zeros(3))
    assert found == pytest.approx(abs(ends) / ACTIVATION_LEVELS)
    assert (low, high) == (float(ends < 0), float(ends > 0))


def test_signal_is_the_variance_of_the_outputs(case):
    x, weight, _, _ = case
    # channels are independent, up to what 20,000 samples leave of correlation
    assert signal(summary(weight), seen_of(x)) == pytest.approx(
        (x @ weight.T).var(axis=0).sum(), rel=0.05
    )


def test_activation_noise_is_what_rounding_activations_costs(case):
    x, weight, scale, shift = case
    found = step(seen_of(x), np.arange(CHANNELS), scale, shift)
    inside = (x - shift) / scale
    lost = (rounded(inside, found) - inside) * scale @ weight.T
    # an error is even over its step to a few per cent: the steps are a tenth of a sigma at most
    assert activation_noise(summary(weight), scale, found) == pytest.approx(
        np.square(lost).mean(axis=0).sum(), rel=0.05
    )


def test_weight_noise_is_what_rounding_weights_costs(case):
    x, weight, scale, shift = case
    x = x[::20]
    inside, scaled = (x - shift) / scale, weight * scale
    steps = np.abs(scaled).max(axis=1, keepdims=True) / WEIGHT_LEVELS
    rng = np.random.default_rng(0)
    lost = []
    for _ in range(200):  # one weight is rounded in one way: the mean is over many like it
        moved = scaled + rng.uniform(-0.5, 0.5, scaled.shape) * steps
        lost.append(np.square(inside @ (rounded(moved, steps) - moved).T).mean(axis=0).sum())
    # 200 draws of 16 rows of 12 weights: a per cent or two
    assert weight_noise(summary(weight), seen_of(x), scale, shift) == pytest.approx(
        np.mean(lost), rel=0.05
    )


def test_weight_noise_counts_every_tap():
    kernel = np.random.default_rng(0).standard_normal((4, 3, 3, 3))
    held = weight_of(kernel, np.arange(3), 1)
    seen = Moments(-np.ones(3), np.ones(3), np.zeros(3), np.array([1.0, 2.0, 3.0]))
    steps = np.abs(kernel).max(axis=(1, 2, 3)) / WEIGHT_LEVELS
    want = sum(step_**2 / 12 * 9 * 6.0 for step_ in steps)
    assert weight_noise(held, seen, np.ones(3), np.zeros(3)) == pytest.approx(want)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_weight_in_summary(groups):
    weight = np.random.default_rng(0).standard_normal((8, 8 // groups, 3, 3))
    ids = np.arange(100, 108)
    held = weight_of(weight, ids, groups)
    rows = np.broadcast_to(held.ids, (8, 8 // groups))
    assert held.taps == 9
    for out in range(8):
        first = 100 + out // (8 // groups) * (8 // groups)  # the inputs of its group
        np.testing.assert_array_equal(rows[out], np.arange(first, first + 8 // groups))
    np.testing.assert_array_equal(held.peak, np.abs(weight).max(axis=(2, 3)))
    np.testing.assert_allclose(held.energy, np.square(weight).sum(axis=(2, 3)))


def test_one_scale_for_all_costs_nothing_and_saves_nothing(case):
    x, weight, _, _ = case
    held, seen, zero = summary(weight), seen_of(x), np.zeros(CHANNELS)
    results = []
    for scale in (np.ones(CHANNELS), np.full(CHANNELS, 7.0)):
        found = step(seen, np.arange(CHANNELS), scale, zero)
        noises = activation_noise(held, scale, found), weight_noise(held, seen, scale, zero)
        results.append([*noises, growth(held, seen, scale)])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-12)
    assert results[0][2] == 1.0


def test_growth_is_the_range_of_the_worst_row():
    weight = np.array([[1.0, 0.5], [2.0, 0.1]])
    seen = Moments(*np.array([[-1.0, -1], [1, 1], [0, 0], [1, 1]]))
    scale = np.array([1.0, 8.0])
    # variance of what a row reads falls from 2 to 1 + 1/64; its peak rises from 1 to 4, and not
    gain = np.sqrt((1 + 1 / 64) / 2)
    assert growth(summary(weight), seen, scale) == pytest.approx(4 * gain)
    assert growth(summary(weight[1:]), seen, scale) == 1.0  # 2 stays the peak: never below one


def test_growth_of_what_is_dead_is_none():
    seen = Moments(*np.zeros((4, 2)))
    assert growth(summary(np.zeros((3, 2))), seen, np.array([0.1, 10.0])) == 1.0


def test_a_single_channel_of_zero_variance_is_harmless():
    seen = Moments(np.zeros(2), np.array([0.0, 1.0]), np.array([0.0, 0.5]), np.array([0.0, 0.5]))
    held = Weight(np.ones((1, 2)), np.ones((1, 2)), np.array([[0, 1]]), 1)
    numbers = (
        signal(held, seen), growth(held, seen, np.ones(2)),
        weight_noise(held, seen, np.ones(2), np.zeros(2)),
    )  # fmt: skip
    assert np.isfinite(numbers).all()


def test_variance_is_never_negative():
    mean = np.array([1e4])
    assert Moments(mean, mean, mean, mean**2 * (1 - 1e-12)).variance == 0.0


@given(st.integers(1, 20), st.integers(1, 6), SEEDS)
def test_equalizing_is_least_squares(members, count, seed):
    rng = np.random.default_rng(seed)
    logs, signs = rng.normal(0, 3, members), rng.choice([-1, 1], members)
    groups = rng.integers(count, size=members)
    system = np.zeros((members, count))
    system[np.arange(members), groups] = signs
    want = np.linalg.lstsq(system, logs, rcond=None)[0]  # of least norm: 0 for an empty group
    np.testing.assert_allclose(equalizing(logs, groups, signs, count), want, atol=1e-9)


def test_queries_and_keys_meet_in_the_middle():
    """Cross-layer equalization: t = sqrt(r1 / r2), after which both have the size sqrt(r1 r2)."""
    sizes = np.array([8.0, 0.5])
    log = equalizing(np.log(sizes), np.array([0, 0]), np.array([1, -1]), 1)
    after = sizes / np.exp(log) ** np.array([1, -1])
    np.testing.assert_allclose(after, [2.0, 2.0])


@given(st.lists(st.floats(-40, 40), min_size=1, max_size=8))
def test_bounded_scales_are_not_far_below_the_largest(logs):
    scales = bounded(np.array(logs))
    limit = SMALLEST * np.exp(max(logs))
    assert scales.min() >= limit * (1 - 1e-12)
    kept = np.exp(logs) >= limit
    np.testing.assert_allclose(scales[kept], np.exp(logs)[kept])


def test_the_level_is_that_of_what_stays():
    logs = np.array([1.0, 3.0, 10.0, 20.0])
    groups, signs = np.array([0, 0, 1, 2]), np.array([1, -1, 1, 1])
    all_free = np.ones(4, bool)
    assert level(logs, groups, signs, all_free) == 2.0  # queries and keys
    assert level(logs, groups, np.ones(4, int), all_free) == 6.5  # no pair: the middle
    assert level(logs, groups, -np.ones(4, int), all_free) == 6.5
    assert level(logs, groups, np.ones(4, int), np.array([True, True, False, True])) == 10.0


def test_all_come_to_the_level():
    """Values a thousand times smaller than queries and keys are brought up to them."""
    logs = np.log([8.0, 2.0, 1e-3])
    groups, signs = np.array([0, 0, 1]), np.array([1, -1, 1])
    about = logs - level(logs, groups, signs, np.ones(3, bool))
    scales = np.exp(equalizing(about, groups, signs, 2))[groups] ** signs
    np.testing.assert_allclose(np.exp(logs) / scales, 4.0)


def test_needs_are_relative_and_none_is_neutral():
    np.testing.assert_allclose(centred(np.array([2.0, 8.0, 0.0])), [-np.log(2.0), np.log(2.0), 0.0])
    np.testing.assert_array_equal(centred(np.zeros(3)), 0.0)
