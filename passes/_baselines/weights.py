# SPDX-License-Identifier: Apache-2.0
"""Weights as the columns that a search looks at, and scales as the grids that kernels take."""

from dataclasses import replace

import numpy as np

from qhyvit_onnx.grid import WeightGrid
from qhyvit_onnx.methods import Rows
from qhyvit_onnx.passes._baselines.ranges import SHARES, best_channels
from qhyvit_onnx.passes._matrices import (
    Floats,
    bias_scales,
    is_stacked,
    limit_of,
    pair_scales,
    positive,
)
from qhyvit_onnx.simulated import ChannelGrid
from qhyvit_onnx.units import CONVOLUTIONS, Kind, Unit


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
    apart = rows is Rows.ALL or (rows is Rows.CONVOLUTIONS and unit.kind in CONVOLUTIONS)
    return apart and not is_stacked(unit)


def peaks_of(columns: Floats, *, apart: bool) -> Floats:
    """Return the largest weight of every column, (groups, C_out / groups), or of all, (1, 1)."""
    peaks: Floats = np.abs(columns).max(axis=1)
    return peaks if apart else peaks.max(keepdims=True).reshape(1, 1)


def grid_of(unit: Unit, scales: Floats, bits: int) -> WeightGrid:
    """Return scales (groups, C_out / groups), or (1, 1), as the grid of the weight."""
    return WeightGrid(positive(scales.reshape(-1)), unit.weight_axis, limit_of(bits))


def between_percentiles(unit: Unit, weight: Floats, bits: int) -> ChannelGrid:
    """Return the asymmetric grid of every output channel, its range the best of three percentiles.

    A stack of matrices has one for all.

    Source:
        RepQ-ViT, arXiv 2212.08254, whose released simulator rounds weights as it does activations.
    """
    apart = per_column(unit, Rows.ALL)
    values = np.moveaxis(weight, unit.weight_axis, -1).reshape(-1, weight.shape[unit.weight_axis])
    values = values if apart else values.reshape(-1, 1)
    ranges = (np.quantile(values, [1 - share, share], axis=0) for share in SHARES)
    return best_channels(values, [(low, high) for low, high in ranges], unit.weight_axis, bits)


def deployable(unit: Unit, grid: WeightGrid, input_scale: float, pair_limit: int) -> WeightGrid:
    """Return ``grid`` raised where sums or the bias would overflow on the target.

    ``pair_limit``: most that two neighbouring weights may sum to; 0: no limit.
    """
    least = np.maximum(pair_scales(unit, pair_limit), bias_scales(unit, input_scale))
    least = least if grid.scale.size > 1 else least.max(keepdims=True)
    return replace(grid, scale=np.maximum(grid.scale, least))
