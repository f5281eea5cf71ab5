# SPDX-License-Identifier: Apache-2.0
"""Scale search: never worse than min-max, equal to brute force, and safe for saturating pairs."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qhyvit_onnx.grid import grid_for
from qhyvit_onnx.kernels.observers import Observer
from qhyvit_onnx.kernels.scales import (
    LEAST,
    pair_safe_scale,
    range_error,
    search_range,
    weight_scale,
    weighted_counts,
)

SEEDS = st.integers(0, 2**32 - 1)
SAMPLES = {
    "normal": lambda rng: rng.standard_normal(20000),
    "laplace": lambda rng: rng.laplace(size=20000),
    "student": lambda rng: rng.standard_t(2.5, size=20000),
    "relu": lambda rng: np.maximum(rng.laplace(size=20000), 0),
    "silu": lambda rng: (x := rng.normal(0, 3, 20000)) / (1 + np.exp(-x)),
    "negative": lambda rng: -rng.lognormal(0, 1, 20000),
    "uniform": lambda rng: rng.uniform(-1, 3, 20000),
    "outlier": lambda rng: np.append(rng.standard_normal(20000), [40.0, -60.0]),
}


def searched(x, bits=8, candidates=100):
    observer = Observer(0)
    observer.add(x[None])
    stats = observer.stats()
    return search_range(
        stats.centers, stats.counts, stats.low, stats.high,
        bits=bits, candidates=candidates, lowest=0.3,
    )  # fmt: skip


def cost(x, low, high, bits=8):
    """Return the true squared error of ``x`` on the grid of a range."""
    return float(np.square(grid_for(low, high, bits=bits).fake(x) - x).sum(dtype=np.float64))


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(("bits", "slack"), [(4, 1.1), (8, 1.02)])
def test_not_worse_than_min_max(name, bits, slack):
    x = SAMPLES[name](np.random.default_rng(5)).astype(np.float32)
    low, high = searched(x, bits)
    assert min(x.min(), 0) <= low <= 0 <= high <= max(x.max(), 0)
    # the search minimises the expected error: the true one scatters by 1 % on 20000 positions, and
    # rounding the zero point shifts the range by half a step, much with 15 steps, little with 255
    assert cost(x, low, high, bits) <= slack * cost(x, float(x.min()), float(x.max()), bits)


@pytest.mark.parametrize("name", ["student", "outlier"])
def test_heavy_tails_are_clipped_for_a_real_gain(name):
    x = SAMPLES[name](np.random.default_rng(5)).astype(np.float32)
    assert cost(x, *searched(x, 4), 4) < 0.8 * cost(x, float(x.min()), float(x.max()), 4)


@settings(max_examples=30)
@given(SEEDS, st.sampled_from([2, 4, 8]))
def test_equals_brute_force_over_the_same_candidates(seed, bits):
    rng = np.random.default_rng(seed)
    centers = np.sort(rng.normal(rng.normal(), 1, 50))
    counts = rng.integers(0, 20, 50).astype(np.float64)
    low, high = float(centers[0] - 0.1), float(centers[-1] + 0.1)

    def expected(a, b):
        inside = (centers >= a) & (centers < b)
        distance = np.maximum(a - centers, 0) + np.maximum(centers - b, 0)
        step = (b - a) / (2**bits - 1)
        return (counts * distance**2).sum() + counts[inside].sum() * step**2 / 12

    fractions = np.linspace(0.4, 1.0, 9)
    pairs = list(product(min(low, 0) * fractions, max(high, 0) * fractions))
    best = min(expected(a, b) for a, b in pairs)
    found = search_range(centers, counts, low, high, bits=bits, candidates=9, lowest=0.4)
    assert expected(*found) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_a_relu_keeps_zero_as_its_low_end():
    x = SAMPLES["relu"](np.random.default_rng(1)).astype(np.float32)
    low, high = searched(x)
    assert low == 0.0
    assert grid_for(low, high).zero_point == 0
    assert 0 < high <= x.max()


def test_zeros_do_not_pull_the_range():
    x = np.abs(np.random.default_rng(1).standard_normal(4000)).astype(np.float32)
    assert searched(x) == searched(np.append(x, np.zeros(30000, np.float32)))


def test_a_range_that_misses_zero_is_covered():
    x = np.random.default_rng(1).uniform(2, 3, 4000).astype(np.float32)
    low, high = searched(x)
    assert low == 0.0
    assert high == pytest.approx(3.0, rel=0.02)


def test_an_empty_histogram_keeps_the_range():
    # nothing but exact zeros was sampled, minimum and maximum saw more: nothing to trade
    found = search_range(
        np.arange(-2.0, 3.0), np.zeros(5), -2.0, 2.0, bits=8, candidates=10, lowest=0.3
    )
    assert found == (-2.0, 2.0)


def histogram(x):
    observer = Observer(0)
    observer.add(x[None])
    stats = observer.stats()
    return stats.centers, stats.counts


def test_equal_gains_change_nothing():
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    centers, counts = histogram(x)
    drawn = x[:500].reshape(50, 10)
    found = weighted_counts(centers, counts, drawn, np.full_like(drawn, 3e-7))
    np.testing.assert_allclose(found, counts, rtol=1e-6)


@pytest.mark.parametrize("power", [-3.0, 3.0])
def test_what_costs_more_counts_more(power):
    # gains rise, or fall, with the size of the value
    x = np.random.default_rng(1).laplace(size=20000).astype(np.float32)
    centers, counts = histogram(x)
    drawn = x[:2000]
    gains = np.exp(power * np.minimum(np.abs(drawn), 3.0)).astype(np.float32)
    found = weighted_counts(centers, counts, drawn, gains)
    large, small = (
        found[mask].sum() / counts[mask].sum()
        for mask in (np.abs(centers) > 2, np.abs(centers) < 1)
    )
    assert (large > 5 * small) if power > 0 else (large < 0.2 * small)
    assert (found >= LEAST * counts * (1 - 1e-9)).all()
    low, high = float(x.min()), float(x.max())
    ends = [
        search_range(centers, weights, low, high, bits=4, candidates=60, lowest=0.2)
        for weights in (counts, found)
    ]
    widths = [b - a for a, b in ends]
    assert (widths[1] > widths[0]) is (power > 0)


def test_one_place_of_a_huge_gain_does_not_rule():
    rng = np.random.default_rng(2)
    x = rng.standard_normal(20000).astype(np.float32)
    centers, counts = histogram(x)
    gains = np.ones(2000, np.float32)
    gains[7] = 300.0
    found = weighted_counts(centers, counts, x[:2000], gains)
    # its cell holds a twenty-fourth of all places: 4 times the mean of the others, not 300
    assert found.max() / counts[found.argmax()] < 6.0


@pytest.mark.parametrize(("values", "gains"), [([0.0, 0.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0])])
def test_without_anything_to_learn_from_counts_stay(values, gains):
    centers, counts = histogram(np.random.default_rng(3).standard_normal(500).astype(np.float32))
    found = weighted_counts(centers, counts, np.float32(values), np.float32(gains))
    np.testing.assert_array_equal(found, counts)


def test_the_expected_error_of_a_range_is_the_measured_one():
    x = np.random.default_rng(4).standard_normal(200000).astype(np.float32)
    centers, counts = histogram(x)
    for low, high, bits in ((-2.8, 3.2, 4), (-1.4, 2.1, 4), (-4.5, 4.5, 6)):
        want = cost(x, low, high, bits) / x.size
        found = range_error(centers, counts, low, high, 2**bits - 1) / counts.sum()
        # uniform noise inside the steps; zero is a step of the coarse ranges as they are
        assert found == pytest.approx(want, rel=0.05)


def squared_error(weight, scale):
    codes = np.clip(np.rint(weight / scale[:, None]), -127, 127)
    return np.square(codes * scale[:, None] - weight).sum(axis=1)


@given(SEEDS, st.integers(1, 40), st.booleans())
def test_no_row_is_worse_than_at_its_peak(seed, columns, heavy):
    rng = np.random.default_rng(seed)
    weight = (rng.standard_cauchy if heavy else rng.standard_normal)((5, columns))
    weight = weight.astype(np.float32)
    scale = weight_scale(weight, limit=127, candidates=24)
    peak = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    found, plain = (squared_error(weight.astype(np.float64), s.astype(np.float64))
                    for s in (scale, peak))  # fmt: skip
    # codes of float32 quotients: ties may fall the other way, by 1e-6 of the squared peak
    slack = 1e-6 * (peak.astype(np.float64) * 127) ** 2 * columns
    assert scale.dtype == np.float32
    assert (found <= plain * (1 + 1e-3) + slack).all()
    assert (scale <= peak * (1 + 1e-6)).all()


def test_scale_is_the_best_of_its_candidates():
    rng = np.random.default_rng(2)
    weight = rng.standard_t(2, (4, 300)).astype(np.float32)
    found = weight_scale(weight, limit=7, candidates=13, lowest=0.4)
    peak = np.abs(weight).max(axis=1).astype(np.float64) / 7

    def error(fraction):
        step = fraction * peak[:, None]
        codes = np.clip(np.rint(weight / step), -7, 7)
        return np.square(codes * step - weight).sum(axis=1)

    fractions = np.linspace(1.0, 0.4, 13)
    best = fractions[np.argmin([error(f) for f in fractions], axis=0)]
    np.testing.assert_allclose(found, best * peak, rtol=1e-6)


def test_rows_of_zeros_get_no_scale():
    weight = np.array([[0, 0, 0], [1, -2, 3], [1e-25, 0, 0]], np.float32)
    scale = weight_scale(weight, limit=127, candidates=24)
    assert scale[0] == scale[2] == 0.0
    assert scale[1] > 0


WEIGHTS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 9)),
    elements=st.floats(-4, 4, width=32),
)


@given(WEIGHTS, st.sampled_from([128, 64]))
def test_no_pair_of_neighbours_exceeds_the_limit(weight, limit):
    scale = weight_scale(weight, limit=127, candidates=24)
    safe = pair_safe_scale(weight, scale, limit=limit)
    assert (safe >= scale).all()
    used = np.where(safe > 1e-20, safe, np.float32(1.0))
    codes = np.clip(np.rint(weight / used[:, None]), -127, 127).astype(int)
    codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    left, right = codes[:, 0::2], codes[:, 1::2]
    same_sign = np.where(left * right > 0, np.abs(left + right), 0)
    assert same_sign.max() <= limit
    # 255 * the sum fits 16 bits: what vpmaddubsw adds
    assert 255 * 128 <= 32767


def test_rows_without_heavy_pairs_keep_their_scale():
    weight = np.array([[1.0, -1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]], np.float32)
    scale = np.full(2, 1 / 127, np.float32)
    safe = pair_safe_scale(weight, scale, limit=128)
    assert safe[0] == scale[0]
    assert safe[1] == pytest.approx(2 / 127)


def test_pairs_are_those_of_the_kernel():
    # neighbours are (0, 1) and (2, 3); (1, 2) are never multiplied together
    weight = np.array([[0.0, 1.0, 1.0, 0.0]], np.float32)
    scale = np.full(1, 1 / 127, np.float32)
    assert pair_safe_scale(weight, scale, limit=128)[0] == scale[0]
