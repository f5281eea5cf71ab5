# SPDX-License-Identifier: Apache-2.0
"""Products of two matrices of codes: QLinearMatMul, QGemm, MatMulIntegerToFloat."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.kernels.integer.machine import Machine, multiply_add
from qhyvit_onnx.kernels.integer.requantize import (
    Float32,
    Grid,
    Quantized,
    Sums,
    requantize,
)

_WHOLE = 2**24
"""Up to here float32 holds every whole number."""


def exact_type(a: NDArray[np.int32], b: NDArray[np.int32], terms: int) -> type[np.floating[Any]]:
    """Return the smallest float that holds every partial sum of ``terms`` products of a and b.

    Matrix products are fast in floats only, and exact in whatever order as long as they fit.
    Codes have 8 bits, so float64 always holds them.
    """
    largest = terms * int(np.abs(a).max(initial=0)) * int(np.abs(b).max(initial=0))
    return np.float32 if largest <= _WHOLE else np.float64


def wrapped(sums: NDArray[np.floating[Any]]) -> Sums:
    """Return whole numbers as a 32-bit register holds them."""
    return sums.astype(np.int64).astype(np.int32)


def matmul_sums(a: Quantized, b: Quantized) -> Sums:
    """Return the integer product of two stacks of matrices.

    Shapes:
        a (..., M, K); b (..., K, N) with one grid, or one a column; result (..., M, N).
    """
    left, right = a.steps(), b.steps()
    kind = exact_type(left, right, left.shape[-1])
    return wrapped(np.matmul(left.astype(kind), right.astype(kind)))


def matmul(a: Quantized, b: Quantized, out: Grid) -> NDArray[np.generic]:
    """Return QLinearMatMul: codes on the grid ``out``. Shapes as in ``matmul_sums``."""
    return requantize(matmul_sums(a, b), product_scale(a.grid, b.grid) / out.scale, out.zero)


def matmul_to_float(a: Quantized, b: Quantized, bias: Float32 | None, machine: Machine) -> Float32:
    """Return MatMulIntegerToFloat: numbers in float32. Shapes as in ``matmul_sums``; bias (N,)."""
    sums, scale = matmul_sums(a, b).astype(np.float32), product_scale(a.grid, b.grid)
    return sums * scale if bias is None else multiply_add(sums, scale, bias, machine)


def gemm(
    a: Quantized, b: Quantized, bias: Sums | None, out: Grid | None, *, alpha: float = 1.0
) -> NDArray[np.generic]:
    """Return QGemm: codes on the grid ``out``, or numbers in float32 where there is none.

    Shapes:
        a (M, K); b (K, N) with one grid, or one a column; bias broadcast to (M, N).

    Units:
        bias in units of the sum: ``alpha`` times the product of both scales.
    """
    sums = matmul_sums(a, b)
    if bias is not None:
        sums = sums + bias  # both 32 bits wide: wraps as the accumulator does
    scale = np.float32(alpha) * a.grid.scale * b.grid.scale
    if out is None:
        return np.asarray(sums.astype(np.float32) * scale, np.float32)
    return requantize(sums, scale / out.scale, out.zero)


def product_scale(a: Grid, b: Grid) -> Float32:
    """Return the number that one unit of a sum of products stands for, rounded to float32."""
    return np.asarray(a.scale * b.scale, np.float32)
