# SPDX-License-Identifier: Apache-2.0
"""Where builds of onnxruntime for x86 and for ARM round differently."""

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.kernels.integer.requantize import Float32


class Machine(StrEnum):
    """Whose vector code runs; most kernels are the same on both."""

    X86 = "x86"
    """AVX2 and later: Add in fused float32, everything else multiplies, rounds, and adds."""
    ARM = "arm"
    """NEON: Add in fixed point, everything else fuses a multiplication and the addition after."""


def fused(x: NDArray[Any], factor: NDArray[Any], addend: NDArray[Any]) -> Float32:
    """Return ``x * factor + addend`` in float32, rounded once.

    Units:
        ``x`` of 24 bits at most: float64 holds the product.
    """
    return np.asarray(x * factor.astype(np.float64) + addend).astype(np.float32)


def multiply_add(
    x: Float32, factor: NDArray[Any], addend: NDArray[Any], machine: Machine
) -> NDArray[Any]:
    """Return ``x * factor + addend`` in float32 as ``machine`` rounds it: once, or twice."""
    if machine is Machine.ARM:
        return fused(x, factor, addend)
    return np.asarray(x * factor + addend.astype(np.float32), np.float32)
