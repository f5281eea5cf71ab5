# SPDX-License-Identifier: Apache-2.0
"""Weights as the columns that a search looks at, and scales as the grids that kernels take."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.graph import value
from qhyvit_onnx.grid import WeightGrid
from qhyvit_onnx.kernels.scales import pair_safe_scale
from qhyvit_onnx.methods import Rows
from qhyvit_onnx.units import CONVOLUTIONS, Kind, Unit

Floats = NDArray[np.float32]

LEAST = np.float32(1e-20)
"""Below this a scale times another one would be denormal."""

BIAS_STEPS = 1 << 30
"""Largest int32 bias code allowed: half of the type, so that accumulation cannot overflow."""


def limit_of(bits: int) -> int:
    """Return the highest code of a weight; the lowest is its negative, as kernels have it."""
    return (1 << (bits - 1)) - 1


def weight_of(unit: Unit) -> Floats:
    """Return the weight of a layer, in its own shape."""
    return np.asarray(value(unit.weight), np.float32)


def columns_of(unit: Unit, weight: Floats) -> Floats:
    """Return a weight as matrices to multiply by, (groups, K, C_out / groups).

    K in the order in which evidence keeps what the layer reads.
    """
    if unit.kind in CONVOLUTIONS:
        groups = int(unit.node.attrs.get("group", 1))
        rows = weight.reshape(groups, weight.shape[0] // groups, -1)
        return np.ascontiguousarray(rows.transpose(0, 2, 1))
    if unit.kind is Kind.GEMM and unit.weight_axis == 0:
        return np.ascontiguousarray(weight.T[None])
    return weight.reshape(-1, *weight.shape[-2:])


def input_axis(unit: Unit) -> int:
    """Return the axis of the weight along which its input channels lie."""
    if unit.kind in CONVOLUTIONS:
        return 1
    return 1 - unit.weight_axis if unit.kind is Kind.GEMM else len(unit.weight.shape) - 2  # type: ignore[union-attr]


def per_column(unit: Unit, rows: Rows) -> bool:
    """Tell whether a method gives every output channel of a layer a scale of its own.

    A stack of matrices has one scale: kernels take no more.
    """
    stacked = unit.kind is Kind.MATMUL and weight_of(unit).ndim > 2
    apart = rows is Rows.ALL or (rows is Rows.CONVOLUTIONS and unit.kind in CONVOLUTIONS)
    return apart and not stacked


def peaks_of(columns: Floats, *, apart: bool) -> Floats:
    """Return the largest weight of every column, (groups, C_out / groups), or of all, (1, 1)."""
    peaks: Floats = np.abs(columns).max(axis=1)
    return peaks if apart else peaks.max(keepdims=True).reshape(1, 1)


def grid_of(unit: Unit, scales: Floats, bits: int) -> WeightGrid:
    """Return scales (groups, C_out / groups), or (1, 1), as the grid of the weight."""
    flat = scales.reshape(-1).astype(np.float32)
    least = LEAST if flat.max() > 0 else np.float32(1)  # a weight of zeros: any scale
    return WeightGrid(np.where(flat > LEAST, flat, least), unit.weight_axis, limit_of(bits))


def deployable(unit: Unit, grid: WeightGrid, input_scale: float, pair_limit: int) -> WeightGrid:
    """Return ``grid`` raised where sums or the bias would overflow on the target.

    ``pair_limit``: most that two neighbouring weights may sum to; 0: no limit.
    """
    scale = grid.scale
    if pair_limit and unit.kind is not Kind.DEPTHWISE:
        rows = _kernel_rows(unit)
        raised = pair_safe_scale(rows, np.broadcast_to(scale, rows.shape[:1]), limit=pair_limit)
        scale = raised if scale.size > 1 else raised.max(keepdims=True)
    if unit.bias is not None and not (unit.kind is Kind.MATMUL and weight_of(unit).ndim > 2):
        bias = np.abs(np.asarray(value(unit.bias))).reshape(-1)
        needed = bias / (input_scale * BIAS_STEPS)
        needed = needed if scale.size > 1 else needed.max(keepdims=True)
        scale = np.maximum(scale, needed)
    return replace(grid, scale=scale.astype(np.float32))


def _kernel_rows(unit: Unit) -> Floats:
    """Return the weight as (C_out, K), K in the order the kernel sums: position, then channel."""
    weight = weight_of(unit)
    if unit.kind is Kind.MATMUL:
        return np.moveaxis(weight, -2, -1).reshape(-1, weight.shape[-2])
    if unit.kind is Kind.GEMM:
        return np.ascontiguousarray(weight if unit.weight_axis == 0 else weight.T)
    return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)
