# SPDX-License-Identifier: Apache-2.0
"""QLinearAdd and QLinearMul, with broadcasting; Add is not the same sum on x86 and on ARM."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.kernels.integer.machine import Machine, fused, multiply_add
from qhyvit_onnx.kernels.integer.requantize import Codes, Grid, Quantized, saturate

Number: TypeAlias = NDArray[Any]
"""Ratios and zero points: one value without axes."""


_RATIOS = (2.0**-14, 2.0**8)
_LONGEST_SHIFT = 31
_LARGEST_FACTOR = 1 << 22
"""What fixed point is for on NEON: outside of these it computes in plain float32."""


def add(a: Quantized, b: Quantized, out: Grid, machine: Machine) -> Codes:
    """Return the codes of ``a + b`` on the grid ``out``.

    Shapes:
        any two that broadcast, with one grid each.

    Source:
        MlasQLinearAdd: kernels for AVX2 and for NEON.
    """
    return _add_fixed(a, b, out) if machine is Machine.ARM else _add_fused(a, b, out)


def mul(a: Quantized, b: Quantized, out: Grid, machine: Machine) -> Codes:
    """Return the codes of ``a * b`` on the grid ``out``.

    The zero point is added before the rounding: ties go to the even code, not to the even step.

    Shapes:
        any two that broadcast, with one grid each.

    Source:
        MlasQLinearMul.
    """
    scale = _one(a.grid.scale) * _one(b.grid.scale) / _one(out.scale)
    products = (a.steps() * b.steps()).astype(np.float32)
    return saturate(np.rint(multiply_add(products, scale, _one(out.zero), machine)), out.zero.dtype)


def _add_fused(a: Quantized, b: Quantized, out: Grid) -> Codes:
    if _is_repeated(a.codes, b.codes):  # onnxruntime takes the repeated operand first
        a, b = b, a
    by_a, by_b = (_one(x.grid.scale) / _one(out.scale) for x in (a, b))
    zero_a, zero_b, zero = (_one(g.zero).astype(np.float32) for g in (a.grid, b.grid, out))
    fixed = zero - fused(zero_a, by_a, by_b * zero_b)
    sums = fused(a.codes, by_a, fused(b.codes, by_b, fixed))
    return saturate(np.rint(sums), out.zero.dtype)


def _add_fixed(a: Quantized, b: Quantized, out: Grid) -> Codes:
    found = _fixed_point(*(_one(x.grid.scale) / _one(out.scale) for x in (a, b)))
    if found is None:
        return _add_plain(a, b, out)
    shift, times_a, times_b = found
    sums = a.steps().astype(np.int64) * times_a + b.steps().astype(np.int64) * times_b
    rounded = (sums - (sums < 0) + (1 << (shift - 1))) >> shift  # half away from zero
    return saturate(rounded + _one(out.zero), out.zero.dtype)


def _fixed_point(by_a: Number, by_b: Number) -> tuple[int, int, int] | None:
    """Return the shift and both ratios as multipliers, the larger of 22 bits; None if none fits."""
    small, large = _RATIOS
    shift = 22 - int(np.frexp(max(by_a, by_b))[1])
    if min(by_a, by_b) < small or max(by_a, by_b) >= large or shift > _LONGEST_SHIFT:
        return None
    times_a, times_b = (int(np.rint(ratio * np.float32(2.0**shift))) for ratio in (by_a, by_b))
    return (shift, times_a, times_b) if max(times_a, times_b) < _LARGEST_FACTOR else None


def _add_plain(a: Quantized, b: Quantized, out: Grid) -> Codes:
    first, second = (x.steps().astype(np.float32) * _one(x.grid.scale) for x in (a, b))
    steps = (first + second) / _one(out.scale)
    return saturate(np.rint(steps + _one(out.zero).astype(np.float32)), out.zero.dtype)


def _is_repeated(a: Codes, b: Codes) -> bool:
    """Tell whether one element of ``a`` meets a run of elements of ``b``."""
    shape = (1,) * (b.ndim - a.ndim) + a.shape
    other = (1,) * (a.ndim - b.ndim) + b.shape
    inner = next(((m, n) for m, n in zip(shape[::-1], other[::-1], strict=True) if m * n > 1), None)
    return inner is not None and inner[0] == 1


def _one(part: NDArray[Any]) -> Number:
    """Return the value of a one-element array."""
    return part.reshape(())
