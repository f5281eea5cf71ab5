# SPDX-License-Identifier: Apache-2.0
"""Every op kernel there is: ONNX's default operator set in torch, differentiable where ONNX is."""

from qhyvit_onnx.kernels.ops import (
    activations,
    arithmetic,
    comparison,
    indexing,
    linear,
    movement,
    norms,
    pooling,
    quantization,
    reductions,
    resize,
    shapes,
)
from qhyvit_onnx.kernels.ops.table import KernelTable

TABLE = KernelTable([
    *activations.KERNELS,
    *arithmetic.KERNELS,
    *comparison.KERNELS,
    *indexing.KERNELS,
    *linear.KERNELS,
    *movement.KERNELS,
    *norms.KERNELS,
    *pooling.KERNELS,
    *quantization.KERNELS,
    *reductions.KERNELS,
    *resize.KERNELS,
    *shapes.KERNELS,
])  # fmt: skip
"""The only registration."""
