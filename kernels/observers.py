# SPDX-License-Identifier: Apache-2.0
"""What calibration remembers of a tensor, in memory that does not grow with the samples."""

from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Counts = NDArray[np.float64]

BINS = 4096
SAMPLED = 1 << 15
"""Positions of one sample that enter the histogram; minima and maxima see all of them."""


SQUARE_SAFE = 1e12
"""Up to this a sum of squares fits float32, however many positions it has."""


class GrowingHistogram:
    """Equal bins on a grid that always contains zero; when a value falls outside, bins pair up.

    Doubling the width merges neighbours exactly, so what was counted before a range grew is
    still counted in the right (wider) bin. Exact zeros are counted apart: they cost no error on a
    grid that holds zero, however many a ReLU makes.
    """

    def __init__(self, bins: int = BINS) -> None:
        """Start empty; the first values choose the bin width."""
        self.counts: Counts = np.zeros(bins)
        self.zeros = 0.0
        self._first = 0  # index of the first bin: it covers [first * width, (first + 1) * width)
        self._width = 0.0

    def add(self, values: Floats) -> None:
        """Count finite ``values`` of any shape."""
        flat = values.reshape(-1)
        filled = np.count_nonzero(flat)
        self.zeros += flat.size - filled
        if not filled:
            return
        nonzero = flat if filled == flat.size else flat[flat != 0.0]
        low, high = float(nonzero.min()), float(nonzero.max())
        if not self._width:
            self._start(low, high)
        while not self._covers(low, high):
            self._double()
        place = np.divide(nonzero, self._width, dtype=np.float64)
        index = np.floor(place, out=place).astype(np.intp)
        index -= self._first
        self.counts += np.bincount(index, minlength=self.counts.size)

    @property
    def centers(self) -> Counts:
        """Return the middle of every bin, in units of x."""
        return np.asarray((self._first + np.arange(self.counts.size) + 0.5) * self._width)

    def _start(self, low: float, high: float) -> None:
        low, high = min(low, 0.0), max(high, 0.0)
        self._width = max((high - low) / (self.counts.size - 2), 1e-30)
        self._first = int(np.floor(low / self._width))

    def _covers(self, low: float, high: float) -> bool:
        # by the division that finds a value's bin: at an edge, a product can round the other way
        first, last = np.floor(low / self._width), np.floor(high / self._width)
        return bool(self._first <= first and last < self._first + self.counts.size)

    def _double(self) -> None:
        """Halve the resolution; put the freed bins evenly on both sides."""
        bins = self.counts.size
        first = self._first // 2
        merged = np.zeros(bins)
        np.add.at(merged, (self._first + np.arange(bins)) // 2 - first, self.counts)
        used = bins // 2 + 1
        shift = (bins - used) // 2
        self.counts = np.roll(merged, shift)
        self._first, self._width = first - shift, 2 * self._width


@dataclass(frozen=True, slots=True)
class TensorStats:
    """What one calibration run saw of one tensor.

    Shapes:
        channel_low, channel_high, channel_mean, channel_square (C,) along ``axis``; centers,
        counts (bins,).

    Units:
        low, high, mean, std in units of x; counts in sampled positions.
    """

    shape: tuple[int, ...]
    """Shape of the last sample."""
    low: float
    high: float
    mean: float
    std: float
    axis: int
    channel_low: Floats
    channel_high: Floats
    channel_mean: Floats
    channel_square: Floats
    """Mean of x squared per channel: how much an error of the weight that reads it matters."""
    centers: Counts
    counts: Counts
    zeros: float

    @property
    def one_sided(self) -> bool:
        """Whether the range excludes zero: what overflows a zero point."""
        return self.low > 0.0 or self.high < 0.0


class Observer:
    """Accumulates the statistics of one tensor over samples.

    A channel axis whose length changes from sample to sample is no channel axis: from then on
    the tensor is treated as one channel.
    """

    def __init__(self, axis: int) -> None:
        """Take ``axis`` as the channel axis; it may be negative."""
        self._axis = axis
        self._histogram = GrowingHistogram()
        self._shape: tuple[int, ...] = ()
        self._seen: _Channels | None = None

    def add(self, x: Floats) -> bool:
        """Take one sample; False when it holds NaN or infinity (and nothing was taken)."""
        if not x.size:
            return True
        x = x.reshape(1) if x.ndim == 0 else x
        channels = _Channels.of(x, self._axis % x.ndim)
        if not (np.isfinite(channels.low).all() and np.isfinite(channels.high).all()):
            return False
        self._seen = channels if self._seen is None else self._seen.joined(channels)
        self._histogram.add(_thin(x))
        self._shape = x.shape
        return True

    @property
    def empty(self) -> bool:
        """Whether nothing was seen: no samples, or only samples without elements."""
        return self._seen is None

    def stats(self) -> TensorStats:
        """Return what was seen; ``empty`` must be false."""
        seen = self._seen
        assert seen is not None
        mean, square = seen.total / seen.rows, seen.square / seen.rows
        variance = float(square.mean()) - float(mean.mean()) ** 2
        return TensorStats(
            shape=self._shape,
            low=float(seen.low.min()),
            high=float(seen.high.max()),
            mean=float(mean.mean()),
            std=float(np.sqrt(max(variance, 0.0))),
            axis=self._axis,
            channel_low=seen.low,
            channel_high=seen.high,
            channel_mean=mean,
            channel_square=square,
            centers=self._histogram.centers,
            counts=self._histogram.counts,
            zeros=self._histogram.zeros,
        )


@dataclass(frozen=True, slots=True)
class _Channels:
    """Sums over everything but the channel; shapes (C,)."""

    low: Floats
    high: Floats
    total: Floats
    square: Floats
    rows: int

    @classmethod
    def of(cls, x: Floats, axis: int) -> "_Channels":
        others = tuple(i for i in range(x.ndim) if i != axis)
        letters = "abcdefgh"[: x.ndim]
        low, high = x.min(axis=others), x.max(axis=others)
        if max(-float(low.min()), float(high.max())) > SQUARE_SAFE:
            x = x.astype(np.float64)
        square = np.einsum(f"{letters},{letters}->{letters[axis]}", x, x).astype(np.float64)
        total = x.sum(axis=others).astype(np.float64)
        rows = x.size // max(x.shape[axis], 1)
        return cls(low, high, total, square, rows)

    def joined(self, other: "_Channels") -> "_Channels":
        if self.low.shape != other.low.shape:
            return self._pooled().joined(other._pooled())
        return _Channels(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.total + other.total,
            self.square + other.square,
            self.rows + other.rows,
        )

    def _pooled(self) -> "_Channels":
        return _Channels(
            self.low.min(keepdims=True),
            self.high.max(keepdims=True),
            self.total.sum(keepdims=True),
            self.square.sum(keepdims=True),
            self.rows * self.low.size,
        )


def _thin(x: Floats) -> Floats:
    """Return about SAMPLED positions, evenly spread over every axis."""
    flat = x.reshape(-1)
    if flat.size <= SAMPLED:
        return flat
    stride = flat.size // SAMPLED
    while any(gcd(stride, length) > 1 for length in x.shape):
        stride += 1  # else some columns would never be seen
    return flat[::stride]
