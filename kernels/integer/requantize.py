# SPDX-License-Identifier: Apache-2.0
"""From numbers to codes and back, and from integer sums to codes: every rounding there is."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Codes: TypeAlias = NDArray[np.integer[Any]]
"""Of type uint8 or int8; biases and what is dequantized may be int32."""
Float32: TypeAlias = NDArray[np.float32]
Sums: TypeAlias = NDArray[np.int32]


class Grid(NamedTuple):
    """Where codes lie: the number of a code is ``(code - zero) * scale``.

    Shapes:
        scale and zero () or (1,) for a tensor, (C,) for one grid a channel.

    Units:
        scale in numbers a step; zero in codes, and of the type of the codes.
    """

    scale: Float32
    zero: Codes


class Quantized(NamedTuple):
    """Codes, and the grid they lie on."""

    codes: Codes
    grid: Grid

    def steps(self) -> NDArray[np.int32]:
        """Return ``codes - zero``; one grid a channel is for the last axis."""
        return self.codes.astype(np.int32) - self.grid.zero.astype(np.int32)


def quantize(x: Float32, grid: Grid, *, axis: int = -1) -> Codes:
    """Return the codes of ``x``: divided, rounded half to even, then the zero point added.

    Shapes:
        x (..., C at ``axis``, ...).

    Error:
        none: true division in float32; NaN becomes the lowest code.

    Source:
        ONNX QuantizeLinear-13; MlasQuantizeLinear.
    """
    with np.errstate(over="ignore"):  # beyond float32 is beyond every code
        steps = x / along(grid.scale, x.ndim, axis)
    zero = along(grid.zero, x.ndim, axis).astype(np.float32)
    return saturate(np.rint(steps) + zero, grid.zero.dtype)


def dequantize(x: Quantized, *, axis: int = -1) -> Float32:
    """Return the numbers of codes, rounded once to float32.

    Shapes:
        codes (..., C at ``axis``, ...).
    """
    scale, zero = (along(part, x.codes.ndim, axis) for part in x.grid)
    steps = x.codes.astype(np.int32) - zero.astype(np.int32)
    return np.asarray(steps.astype(np.float32) * scale, np.float32)


def requantize(sums: Sums, multiplier: Float32, zero: Codes) -> Codes:
    """Return the codes of integer sums: ``clip(rint(float32(sum) * multiplier) + zero)``.

    Shapes:
        sums (..., C); multiplier () or (C,).

    Units:
        multiplier in steps of the result per unit of the sum.

    Source:
        MlasRequantizeOutput.
    """
    steps = np.rint(sums.astype(np.float32) * multiplier)
    return saturate(steps + zero.astype(np.float32), zero.dtype)


def saturate(whole: NDArray[Any], dtype: np.dtype[Any]) -> Codes:
    """Return whole numbers as codes of type ``dtype``, the nearest there is; NaN is the lowest."""
    info = np.iinfo(dtype)
    return np.asarray(np.fmin(np.fmax(whole, info.min), info.max)).astype(dtype)


def along(part: NDArray[Any], ndim: int, axis: int) -> NDArray[Any]:
    """Return a single value, or one value a channel turned to lie along ``axis``."""
    if part.size == 1:
        return part.reshape(())
    shape = [1] * ndim
    shape[axis] = part.size
    return part.reshape(shape)
