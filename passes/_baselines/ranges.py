# SPDX-License-Identifier: Apache-2.0
"""Grids from ranges alone, as each method writes its scale and zero point."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.grid import TINY_SCALE, Cure, Grid, grid_for
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.kernels.percentiles import histogram_ends
from qhyvit_onnx.kernels.scales import range_error
from qhyvit_onnx.methods import Ends, Overflow
from qhyvit_onnx.simulated import ChannelGrid

SHARE = 0.9999
SHARES = (0.99999, 0.9999, 0.999)
"""The widest first: it wins a tie."""


def ends_of(seen: TensorStats, ends: Ends, bits: int) -> tuple[float, float]:
    """Return where the range of a tensor ends."""
    if ends is Ends.EXTREMES:
        return seen.low, seen.high
    if ends is Ends.PERCENTILE:
        return _percentiles(seen, SHARE)
    steps = (1 << bits) - 1

    def error(pair: tuple[float, float]) -> float:
        return range_error(seen.centers, seen.counts, min(pair[0], 0.0), max(pair[1], 0.0), steps)

    return min((_percentiles(seen, share) for share in SHARES), key=error)


def _percentiles(seen: TensorStats, share: float) -> tuple[float, float]:
    low, high = histogram_ends(seen.centers, seen.counts, seen.zeros, share)
    return max(low, seen.low), min(high, seen.high)  # a bin reaches beyond what was seen


def grid_between(
    low: float, high: float, bits: int, overflow: Overflow, factor: float = 1.0
) -> Grid | ChannelGrid:
    """Return the asymmetric grid of a range, its scale times ``factor``.

    ``s = (high - low) / (2 ** bits - 1)``, ``z = -rint(low / s)``; what is done where z leaves its
    type is what methods differ in. Only Overflow.FREE can give a grid that no tensor can hold.
    """
    if low == high:
        return grid_for(low, high, bits=bits)
    if overflow is Overflow.COVERED:
        covered = grid_for(low, high, bits=bits)
        return replace(covered, scale=float(np.float32(covered.scale * factor)))
    top = (1 << bits) - 1
    scale = max((high - low) / top, 2 * TINY_SCALE)
    zero, scale = -np.rint(low / scale), float(np.float32(scale * factor))
    if overflow is Overflow.FREE and not 0 <= zero <= top:
        steps, zeros = (np.asarray([number], np.float32) for number in (scale, zero))
        return ChannelGrid(steps, zeros, -1, bits)
    return Grid(scale, int(np.clip(zero, 0, top)), bits)


def symmetric_between(peak: float, bits: int, factor: float = 1.0) -> Grid:
    """Return the grid ``s = factor peak / 2 ** (bits - 1)`` with its zero point in the middle."""
    half = 1 << (bits - 1)
    return Grid(_step(factor * peak / half), half, bits, Cure.SYMMETRIC)


def unsigned_to(peak: float, bits: int, factor: float = 1.0) -> Grid:
    """Return the grid ``s = factor peak / (2 ** bits - 1)`` with its zero point at the bottom.

    Behind a fused Relu: no kernel takes one in if there are codes below zero.
    """
    return Grid(_step(factor * peak / ((1 << bits) - 1)), 0, bits)


def channels_between(
    low: NDArray[np.floating],
    high: NDArray[np.floating],
    axis: int,
    *,
    bits: int,
    overflow: Overflow,
    factor: float = 1.0,
) -> ChannelGrid:
    """Return the asymmetric grid of every channel. Shapes: low, high (C,)."""
    top = (1 << bits) - 1
    scale = _steps((high - low) / top)
    zero = -np.rint(low / scale)
    zero = zero if overflow is Overflow.FREE else np.clip(zero, 0, top)
    return ChannelGrid(_steps(scale * factor), zero.astype(np.float32), axis, bits)


def best_channels(
    values: NDArray[np.floating],
    ranges: Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]],
    axis: int,
    bits: int,
) -> ChannelGrid:
    """Return an asymmetric grid for each channel: of ``ranges`` the one with the least error.

    Shapes:
        values (P, C); lows and highs (C,) each. The first of equals wins.
    """
    grids = [
        channels_between(low, high, -1, bits=bits, overflow=Overflow.FREE) for low, high in ranges
    ]
    best = np.argmin([squared_errors(values, grid) for grid in grids], axis=0)
    columns = np.arange(best.size)
    scales = np.stack([grid.scales for grid in grids])[best, columns]
    zeros = np.stack([grid.zero_points for grid in grids])[best, columns]
    return ChannelGrid(scales, zeros, axis, bits)


def squared_errors(values: NDArray[np.floating], grid: ChannelGrid) -> NDArray[np.float64]:
    """Return the squared error of every channel, (C,), of values (P, C)."""
    found: NDArray[np.float64] = np.square(grid.fake(values) - values).sum(axis=0, dtype=np.float64)
    return found


def channels_about_zero(
    peak: NDArray[np.floating], axis: int, bits: int, factor: float = 1.0
) -> ChannelGrid:
    """Return the symmetric grid of every channel. Shapes: peak (C,)."""
    half = 1 << (bits - 1)
    zeros = np.full(peak.shape, half, np.float32)
    return ChannelGrid(_steps(peak * (factor / half)), zeros, axis, bits)


def _step(scale: float) -> float:
    return float(np.float32(max(scale, 2 * TINY_SCALE)))


def _steps(scales: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return ``scales`` with epsilon for channels that were constant, as simulators do."""
    eps = np.finfo(np.float32).eps
    found: NDArray[np.float32] = np.where(scales > 0, scales, eps).astype(np.float32)
    return np.maximum(found, np.float32(2 * TINY_SCALE))
