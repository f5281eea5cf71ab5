# SPDX-License-Identifier: Apache-2.0
"""Grids of published methods that no integer kernel takes: rounding that is simulated only.

All of them round half to even; ``fake`` is x rounded to the grid, in the dtype of x.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.errors import PassError

Array = NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGrid:
    """A scale and zero point for each place of one axis: channels, or heads.

    Shapes:
        scales, zero_points (C,) along ``axis``.

    Units:
        scales in units of x a step; zero points in steps from the lowest of ``2 ** bits`` codes,
        whole numbers that may lie outside of the codes, as published simulators let them.
    """

    scales: NDArray[np.float32]
    zero_points: NDArray[np.float32]
    axis: int
    bits: int = 8

    def __post_init__(self) -> None:
        """Reject what rounds nothing."""
        _positive(self.scales)
        if self.scales.ndim != 1 or self.scales.shape != self.zero_points.shape:
            raise PassError(f"{self.scales.shape} scales, {self.zero_points.shape} zero points")
        if not np.array_equal(self.zero_points, np.rint(self.zero_points)):
            raise PassError("zero points are whole numbers")

    @property
    def top(self) -> int:
        """Highest code."""
        return (1 << self.bits) - 1

    def fake(self, x: Array) -> Array:
        """Return ``x`` rounded to the grid."""
        shape = (-1, *[1] * (x.ndim - 1 - self.axis % x.ndim))
        scale, zero = self.scales.reshape(shape), self.zero_points.reshape(shape)
        codes = np.clip(np.rint(x / scale) + zero, 0, self.top)
        out: Array = ((codes - zero) * scale).astype(x.dtype)
        return out


@dataclass(frozen=True, slots=True)
class LogGrid:
    """Powers of 2, or of its square root, for values above zero.

    ``q = rint(-log(x / s))``, ``x' = s base ** -q``; 0 where q is not below ``2 ** bits``.

    Source:
        Log-Int-Softmax of FQ-ViT, arXiv 2111.13824 (base 2, scale 1); scale reparameterisation of
        log sqrt 2 quantizers, RepQ-ViT, arXiv 2212.08254. Both released simulators write 0 for
        what is too small.
    """

    scale: float
    octave: int = 1
    """Codes from one power of 2 to the next: 1 for base 2, 2 for its square root."""
    bits: int = 8

    def __post_init__(self) -> None:
        """Reject what rounds nothing."""
        _positive(np.float32(self.scale))

    def fake(self, x: Array) -> Array:
        """Return ``x`` rounded to the grid."""
        with np.errstate(divide="ignore"):  # zero is infinitely many steps away
            steps = -np.log2(np.maximum(x, 0) / np.float32(self.scale)) * self.octave
        codes = np.maximum(np.rint(steps), 0)
        powers = np.exp2(-codes / self.octave)
        kept = np.where(codes < 1 << self.bits, self.scale * powers, 0.0)
        out: Array = kept.astype(x.dtype)
        return out


@dataclass(frozen=True, slots=True)
class TwinGrid:
    """Two uniform ranges: one bit of the code tells which, the others count its steps.

    Units:
        below and above in units of x a step, on either side of ``split``.

    Source:
        twin uniform quantization, PTQ4ViT, arXiv 2111.12293.
    """

    below: float
    above: float
    split: float
    bits: int = 8

    def __post_init__(self) -> None:
        """Reject what rounds nothing."""
        _positive(np.asarray([self.below, self.above], np.float32))

    @property
    def limit(self) -> int:
        """Highest code of either range."""
        return (1 << (self.bits - 1)) - 1

    def fake(self, x: Array) -> Array:
        """Return ``x`` rounded to the grid."""
        step = np.where(x < self.split, np.float32(self.below), np.float32(self.above))
        out: Array = (np.clip(np.rint(x / step), -self.limit, self.limit) * step).astype(x.dtype)
        return out


@dataclass(frozen=True, slots=True, eq=False)
class ColumnGrid:
    """A weight that is rounded after its input channels were multiplied, and divided again.

    Shapes:
        ``grid`` along the output channels; factors broadcastable against the weight.

    Source:
        scale reparameterisation after norms, RepQ-ViT, arXiv 2212.08254: the factors are folded
        into the weight before it is rounded.
    """

    grid: ChannelGrid
    factors: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Reject what cannot be divided again."""
        _positive(self.factors)

    def fake(self, weight: Array) -> Array:
        """Return ``weight`` rounded to the grid."""
        out: Array = (self.grid.fake(weight * self.factors) / self.factors).astype(weight.dtype)
        return out


Simulated: TypeAlias = ChannelGrid | LogGrid | TwinGrid
"""Of activations."""


def _positive(scales: NDArray[np.float32] | np.float32) -> None:
    if not (np.all(scales > 0) and np.all(np.isfinite(scales))):
        raise PassError("a scale is not a positive finite number")
