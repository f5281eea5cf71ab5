# SPDX-License-Identifier: Apache-2.0
"""Observers: sums equal numpy over all samples, in memory that does not grow with them."""

import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qhyvit_onnx.kernels.observers import BINS, SAMPLED, GrowingHistogram, Observer

# magnitudes far apart make the histogram grow many times
BATCHES = st.lists(
    st.tuples(st.integers(0, 2**32 - 1), st.floats(-6, 6), st.floats(-1, 1), st.integers(1, 200)),
    min_size=1,
    max_size=6,
)


def drawn(seed, exponent, offset, size):
    """Return float32 numbers of one magnitude, shifted by a share of it."""
    x = np.random.default_rng(seed).standard_normal(size) + 3 * offset
    return (x * 10.0**exponent).astype(np.float32)


def edges(histogram):
    width = histogram.centers[1] - histogram.centers[0]
    return np.append(histogram.centers - width / 2, histogram.centers[-1] + width / 2)


@given(BATCHES)
def test_every_value_stays_in_its_bin_while_the_range_grows(batches):
    histogram, every = GrowingHistogram(64), []
    for batch in batches:
        every.append(drawn(*batch))
        histogram.add(every[-1])
    values = np.concatenate(every).astype(np.float64)
    nonzero = values[values != 0]
    want, _ = np.histogram(nonzero, edges(histogram))
    assert histogram.counts.sum() == nonzero.size
    # numpy puts a value that lies on an edge to the right of it, and so do we; but the edges of
    # numpy are sums of floats, ours are exact: one value (and those equal to it) may sit on the
    # other side of one edge
    equal = np.unique(nonzero, return_counts=True)[1].max(initial=1)
    assert np.abs(histogram.counts - want).sum() <= 2 * equal
    assert histogram.zeros == values.size - nonzero.size


@given(BATCHES)
def test_the_grid_of_bins_contains_zero(batches):
    histogram = GrowingHistogram(64)
    for batch in batches:
        histogram.add(drawn(*batch))
    found = edges(histogram)
    assert found[0] <= 1e-9 * abs(found[-1])
    assert found[-1] >= -1e-9 * abs(found[0])
    # and zero is an edge, so that no bin mixes signs
    assert np.abs(found).min() <= 1e-6 * (found[1] - found[0])


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_values_on_the_edges_are_counted(sign):
    histogram = GrowingHistogram(16)
    for scale in range(12):
        histogram.add(sign * np.arange(1.0, 15.0) * 2.0**scale)
    assert histogram.counts.sum() == 12 * 14


@settings(max_examples=300)
@example(low=0.0, high=11585.41796875, index=-30, nudge=0)
@given(
    low=st.floats(-1e6, 1e6, allow_subnormal=False),
    high=st.floats(-1e6, 1e6, allow_subnormal=False),
    index=st.integers(-64, 64),
    nudge=st.integers(-1, 1),
)
def test_values_one_bit_from_an_edge_are_counted(low, high, index, nudge):
    histogram = GrowingHistogram(64)
    histogram.add(np.array([low, high]))
    width = histogram.centers[1] - histogram.centers[0]
    edge = np.nextafter(index * width, nudge * np.inf) if nudge else index * width
    histogram.add(np.array([edge]))
    assert histogram.counts.sum() + histogram.zeros == 3


def test_zeros_are_counted_apart():
    histogram = GrowingHistogram()
    histogram.add(np.array([0.0, -0.0, 1.0, 0.0], np.float32))
    assert histogram.zeros == 3
    assert histogram.counts.sum() == 1


def test_nothing_but_zeros():
    histogram = GrowingHistogram()
    histogram.add(np.zeros((2, 3), np.float32))
    histogram.add(np.ones(1, np.float32))
    assert (histogram.zeros, histogram.counts.sum()) == (6, 1)


@pytest.mark.parametrize("magnitude", [1e-45, 1e-38, 1e-30, 1e30, 3e38])
def test_extreme_magnitudes(magnitude):
    histogram = GrowingHistogram()
    histogram.add(np.array([magnitude], np.float32))
    histogram.add(np.array([-1.0, 1.0], np.float32))
    assert histogram.counts.sum() == 3


def size_of(observer):
    """Return the bytes held by an observer's arrays."""
    held, todo, total = set(), [observer], 0
    while todo:
        item = todo.pop()
        if id(item) in held:
            continue
        held.add(id(item))
        if isinstance(item, np.ndarray):
            total += item.nbytes if item.base is None else item.base.nbytes
        elif hasattr(item, "__slots__") or hasattr(item, "__dict__"):
            names = getattr(item, "__slots__", ()) or vars(item)
            todo.extend(getattr(item, name) for name in names)
        elif isinstance(item, (tuple, list, dict)):
            total += sys.getsizeof(item)
            todo.extend(item.values() if isinstance(item, dict) else item)
    return total


def test_memory_does_not_grow_with_the_samples():
    rng, observer = np.random.default_rng(0), Observer(1)
    sizes = []
    for scale in range(1, 30):
        assert observer.add((scale * rng.standard_normal((1, 8, 20, 20))).astype(np.float32))
        sizes.append(size_of(observer))
    assert len(set(sizes)) == 1
    assert sizes[0] < 3 * 8 * BINS
    assert observer.stats().counts.size == BINS


@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 5, 4, 3), 1), ((1, 7, 5), -1), ((6, 5), -1), ((5,), 0), ((), -1)]
)
def test_sums_equal_numpy_over_all_samples(shape, axis):
    rng = np.random.default_rng(3)
    samples = [rng.normal(1.5, 2.0, shape).astype(np.float32) for _ in range(7)]
    observer = Observer(axis)
    assert all(observer.add(x) for x in samples)
    stats = observer.stats()
    every = np.stack([x.reshape(x.shape or (1,)) for x in samples]).astype(np.float64)
    where = every.ndim - 1 if axis == -1 else axis + 1
    rows = np.moveaxis(every, where, 0).reshape(every.shape[where], -1)
    np.testing.assert_array_equal(stats.channel_low, rows.min(axis=1))
    np.testing.assert_array_equal(stats.channel_high, rows.max(axis=1))
    # float32 sums of at most 120 terms: 120 * 2^-24 is 7e-6
    np.testing.assert_allclose(stats.channel_square, np.square(rows).mean(axis=1), rtol=1e-5)
    assert (stats.low, stats.high) == (every.min(), every.max())
    assert stats.mean == pytest.approx(every.mean(), rel=1e-5)
    assert stats.std == pytest.approx(every.std(), rel=1e-4)
    assert stats.counts.sum() + stats.zeros == every.size
    assert stats.shape == (shape or (1,))


def test_many_terms_keep_their_precision():
    x = np.full((1, 1, 2048, 1024), 0.1, np.float32)
    observer = Observer(1)
    observer.add(x)
    stats = observer.stats()
    # two million equal terms: a plain float32 sum would be off by per cents
    assert stats.mean == pytest.approx(0.1, rel=1e-3)
    assert stats.channel_square[0] == pytest.approx(0.01, rel=1e-2)


def test_large_finite_values_have_finite_moments():
    observer = Observer(1)
    assert observer.add(np.array([[1e20, -1e20], [2e20, 0.0]], np.float32))
    stats = observer.stats()
    assert np.isfinite(stats.channel_square).all()
    assert np.isfinite(stats.std)


def test_another_channel_length_makes_one_channel():
    rng, observer = np.random.default_rng(0), Observer(-1)
    samples = [rng.standard_normal((1, 3, n)).astype(np.float32) for n in (4, 6, 4, 5)]
    assert all(observer.add(x) for x in samples)
    stats = observer.stats()
    every = np.concatenate([x.reshape(-1) for x in samples]).astype(np.float64)
    assert stats.channel_low.shape == stats.channel_square.shape == (1,)
    assert (stats.low, stats.high) == (every.min(), every.max())
    assert stats.mean == pytest.approx(every.mean(), abs=1e-6)
    assert stats.std == pytest.approx(every.std(), rel=1e-5)
    assert stats.channel_square[0] == pytest.approx(np.square(every).mean(), rel=1e-5)


def test_channels_of_unequal_length_weigh_by_their_rows():
    observer = Observer(1)
    observer.add(np.full((1, 2, 3), 1.0, np.float32))
    observer.add(np.full((1, 2, 9), 5.0, np.float32))
    assert observer.stats().mean == pytest.approx(4.0)
    np.testing.assert_allclose(observer.stats().channel_square, [19.0, 19.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_forgotten(bad):
    observer, good = Observer(1), np.ones((1, 2, 2), np.float32)
    assert observer.add(good)
    damaged = good.copy()
    damaged[0, 1, 1] = bad
    assert not observer.add(damaged)
    stats = observer.stats()
    assert (stats.low, stats.high, stats.counts.sum()) == (1.0, 1.0, 4)


def test_integers_are_observed():
    observer = Observer(-1)
    assert observer.add(np.array([[3, -4]], np.int64))
    assert (observer.stats().low, observer.stats().high) == (-4.0, 3.0)


@pytest.mark.parametrize("values", [(1.0, 2.0), (-2.0, -1.0)])
def test_one_sided(values):
    observer = Observer(0)
    observer.add(np.array(values, np.float32))
    assert observer.stats().one_sided


@pytest.mark.parametrize("values", [(0.0, 2.0), (-2.0, 0.0), (-1.0, 1.0)])
def test_not_one_sided(values):
    observer = Observer(0)
    observer.add(np.array(values, np.float32))
    assert not observer.stats().one_sided


@pytest.mark.parametrize("columns", [1, 2, 3, 64, 100])
def test_a_large_tensor_is_thinned_over_every_column(columns):
    # column c holds the value c + 1: every one of them must be seen about equally often
    x = np.tile(np.arange(1.0, columns + 1, dtype=np.float32), (4 * SAMPLED // columns, 1))
    observer = Observer(-1)
    observer.add(x)
    stats = observer.stats()
    seen, _ = np.histogram(stats.centers, np.arange(0.5, columns + 1), weights=stats.counts)
    assert stats.counts.sum() <= 2 * SAMPLED
    assert seen.min() > 0.5 * seen.max()
