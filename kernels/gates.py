# SPDX-License-Identifier: Apache-2.0
"""GELU on integer kernels: a product with a sigmoid whose codes saturate at 0 and 1."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from qhyvit_onnx.grid import Grid
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.kernels.tails import FUNCTIONS

Doubles = NDArray[np.float64]

ROUNDING = 12.0**-0.5
"""Root mean square of what rounding errs by, in steps."""

_TOP = 255
_ZERO_POINTS = range(5)
_HEIGHTS = np.linspace(1.0, 1.04, 11)[:, None, None]
_SLOPES = np.linspace(1.5, 1.8, 16)[:, None]
"""Around what comes closest to GELU for an x spread evenly over -2.5 and above: 1.02 and 1.66, with
zero point 2. An x that comes down to -4 and below wants 1.00, 1.77 and 0."""

_UNSEEN = 0.05
"""Share of the weight that codes of x get whether calibration saw them or not."""

_LASTING = 4.0
"""How much more a mean error counts than its square: layers add it up, and chance does not."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The factor by which x becomes GELU(x), in codes of 8 bits.

    ``written`` is the grid to which ``sigmoid(slope * x)`` is rounded, ``read`` that by which its
    codes are the factor: ``min(height * sigmoid(slope * x) - zero_point / top, 1)``. So the codes
    end where the factor is 1 and, as far down as x goes, 0. A plain ``x * sigmoid(1.702 * x)``
    (Hendrycks, Gimpel, 2016) errs by up to 0.02, this one by less than 0.01.
    """

    slope: float
    written: Grid
    read: Grid
    error: float
    """Root mean square over x as it was seen, in steps of what is written, before rounding that."""

    @property
    def hides(self) -> bool:
        """Whether it errs by no more than rounding its result does."""
        return self.error <= ROUNDING


def gelu_gate(read: Grid, written: Grid, seen: TensorStats) -> Gate:
    """Return the best gate for an x on the grid ``read`` whose GELU goes to ``written``.

    ``seen``: statistics of x.
    """
    x = (np.arange(read.top + 1, dtype=np.float64) - read.zero_point) * read.scale
    codes = np.clip(np.rint(seen.centers / read.scale) + read.zero_point, 0, read.top)
    counts = np.bincount(codes.astype(np.intp), seen.counts, x.size)
    weights = (1 - _UNSEEN) * counts / max(counts.sum(), 1.0) + _UNSEEN / x.size
    found = (_fitted(x, weights, written.scale, zero_point) for zero_point in _ZERO_POINTS)
    return min(found, key=lambda gate: gate.error)


def _fitted(x: Doubles, weights: Doubles, step: float, zero_point: int) -> Gate:
    """Return the best gate with this zero point, among all heights and slopes."""
    factor = Grid(1.0 / (_TOP - zero_point), zero_point)
    scales = factor.scale / _HEIGHTS
    codes = np.clip(np.rint(expit(_SLOPES * x) / scales), 0, _TOP)  # (heights, slopes, x)
    off = (x * (codes - zero_point) * factor.scale - FUNCTIONS["Gelu"](x)) / step
    squares, means = off**2 @ weights, off @ weights
    height, slope = np.unravel_index(np.argmin(squares + _LASTING * means**2), squares.shape)
    return Gate(
        float(_SLOPES[slope, 0]),
        Grid(float(scales[height, 0, 0]), 0),
        factor,
        float(np.sqrt(squares[height, slope])),
    )
