# SPDX-License-Identifier: Apache-2.0
"""Integer grids: a grid with a zero point outside its type cannot exist.

``q = clip(rint(x / s) + z, q_min, q_max)``, ``x' = s (q - z)``; rint rounds half to even.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.errors import PassError

Array = NDArray[np.floating]

TINY_SCALE = 1e-30
"""Below this a float32 scale times another one is denormal: kernels flush it to zero."""


class Cure(StrEnum):
    """What was done for a tensor whose range does not contain zero."""

    NONE = "none"
    """The range contains zero: nothing to cure."""
    SHIFT = "shift"
    """A shift per channel, given back by the layers that read it: free, no level is lost."""
    COVER = "cover"
    """The range is widened to zero: costs ``m / M`` of the levels."""
    SYMMETRIC = "symmetric"
    """Zero point in the middle of the type: costs up to one bit."""
    CONSTANT = "constant"
    """The tensor holds one value: one level represents it exactly."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Per-tensor grid of an activation in ``bits`` unsigned bits (ONNX QuantizeLinear-13).

    Units:
        scale is x per step; zero_point counts steps from the lowest code.

    Error:
        PassError when scale is not a positive finite number or when zero_point is outside
        ``[0, 2**bits - 1]``: zero-point overflow cannot be represented.
    """

    scale: float
    zero_point: int
    bits: int = 8
    cure: Cure = Cure.NONE

    def __post_init__(self) -> None:
        """Reject what no integer tensor can hold."""
        if not TINY_SCALE < self.scale < float(np.finfo(np.float32).max):
            raise PassError(f"scale {self.scale} leaves float32, or is not positive")
        if not 0 <= self.zero_point <= self.top:
            raise PassError(f"zero point {self.zero_point} is outside [0, {self.top}]")

    @property
    def top(self) -> int:
        """Highest code."""
        return (1 << self.bits) - 1

    @property
    def low(self) -> float:
        """Smallest representable value."""
        return float(np.float32(self.scale)) * -self.zero_point

    @property
    def high(self) -> float:
        """Largest representable value."""
        return float(np.float32(self.scale)) * (self.top - self.zero_point)

    def fake(self, x: Array) -> Array:
        """Return ``x`` rounded to the grid, in the dtype of ``x``."""
        scale = np.float32(self.scale)
        codes = np.clip(np.rint(x / scale) + self.zero_point, 0, self.top)
        out: Array = ((codes - self.zero_point) * scale).astype(x.dtype)
        return out


def grid_for(low: float, high: float, *, bits: int = 8) -> Grid:
    """Return the asymmetric grid for the observed range ``[low, high]``.

    A range without zero is cured by *cover* (design: cure 2); a constant gets a grid on which
    its value is one exact step away from zero.

    Error:
        PassError when the range is not finite or is upside down.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise PassError(f"range [{low}, {high}] is not a finite interval")
    top = (1 << bits) - 1
    if low == high:
        return _constant(low, bits)
    cure = Cure.COVER if low > 0.0 or high < 0.0 else Cure.NONE
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / top, 2 * TINY_SCALE)))
    zero_point = int(np.clip(np.rint(-low / scale), 0, top))
    return Grid(scale, zero_point, bits, cure)


def symmetric_grid(peak: float, *, bits: int = 8) -> Grid:
    """Return the grid with its zero point in the middle and ``[-peak, peak]`` inside."""
    middle = 1 << (bits - 1)
    return Grid(
        float(np.float32(max(peak / (middle - 1), 2 * TINY_SCALE))), middle, bits, Cure.SYMMETRIC
    )


def _constant(value: float, bits: int) -> Grid:
    """Return a grid that holds ``value`` (and zero) exactly."""
    scale = abs(value) if abs(value) > 2 * TINY_SCALE else 1.0
    return Grid(float(np.float32(scale)), 1 if value < 0 else 0, bits, Cure.CONSTANT)


@dataclass(frozen=True, slots=True)
class WeightGrid:
    """Per-channel symmetric int8 grid of a weight; zero point 0.

    Shapes:
        scale (C,) along ``axis`` of the weight, or (1,) for one scale per tensor.
    """

    scale: NDArray[np.float32]
    axis: int
    limit: int = 127
    """Codes lie in ``[-limit, limit]``: -128 would lose the kernels for symmetric weights."""

    @property
    def per_tensor(self) -> bool:
        """Whether one scale serves the whole weight."""
        return self.scale.size == 1

    def spread(self, rank: int) -> NDArray[np.float32]:
        """Return the scale shaped to broadcast against a weight of ``rank`` dims."""
        shape = [1] * rank
        shape[self.axis] = self.scale.size
        return self.scale.reshape(shape)

    def codes(self, weight: Array) -> NDArray[np.int8]:
        """Return int8 codes of ``weight``, rounded half to even."""
        steps = np.rint(weight / self.spread(weight.ndim))
        out: NDArray[np.int8] = np.clip(steps, -self.limit, self.limit).astype(np.int8)
        return out

    def fake(self, weight: Array) -> Array:
        """Return ``weight`` rounded to the grid."""
        out: Array = (self.codes(weight) * self.spread(weight.ndim)).astype(weight.dtype)
        return out
