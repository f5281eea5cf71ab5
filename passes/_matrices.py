# SPDX-License-Identifier: Apache-2.0
"""The weight of a layer as a matrix, one row an output channel, and what kernels ask of its scales.

A stack of matrices has its output channels one matrix after the other.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.graph import value
from qhyvit_onnx.kernels.scales import NEGLIGIBLE, pair_safe_scale
from qhyvit_onnx.units import CONVOLUTIONS, Kind, Unit

Floats = NDArray[np.float32]

BIAS_STEPS = 1 << 30
"""Largest int32 bias code allowed: half of the type, so that accumulation cannot overflow."""


def limit_of(bits: int) -> int:
    """Return the highest code of a weight; the lowest is its negative, as kernels have it."""
    return (1 << (bits - 1)) - 1


def weight_of(unit: Unit) -> Floats:
    """Return the weight of a layer, in its own shape."""
    return np.asarray(value(unit.weight), np.float32)


def is_stacked(unit: Unit) -> bool:
    """Tell whether the weight is a stack of matrices: kernels take one scale for all."""
    return unit.kind is Kind.MATMUL and weight_of(unit).ndim > 2


def rows_of(unit: Unit) -> Floats:
    """Return the weight as (C_out, K), K in the order in which evidence counts it."""
    weight = weight_of(unit)
    if _has_rows(unit):
        return weight.reshape(weight.shape[0], -1)
    return np.ascontiguousarray(np.swapaxes(weight, -1, -2)).reshape(-1, weight.shape[-2])


def from_rows(unit: Unit, rows: NDArray[Any]) -> NDArray[Any]:
    """Return ``rows`` (C_out, K) in the shape of the weight."""
    shape = weight_of(unit).shape
    if _has_rows(unit):
        return rows.reshape(shape)
    columns = rows.reshape(*shape[:-2], shape[-1], shape[-2])
    return np.ascontiguousarray(np.swapaxes(columns, -1, -2))


def pair_scales(unit: Unit, limit: int) -> Floats:
    """Return the least scales at which no two neighbouring codes sum to more than ``limit``.

    0 where no kernel minds: for depthwise convolutions, and everywhere if ``limit`` is 0.

    Shapes:
        result (C_out,).
    """
    rows = _summed_rows_of(unit)
    none = np.zeros(len(rows), np.float32)
    if not limit or unit.kind is Kind.DEPTHWISE:
        return none
    return pair_safe_scale(rows, none, limit=limit)


def bias_scales(unit: Unit, input_scale: float) -> Floats:
    """Return the least scales at which the bias fits int32, on steps of both scales.

    0 without a bias, and for a stack of matrices: its bias is added in float.

    Shapes:
        result (C_out,).
    """
    if unit.bias is None or is_stacked(unit):
        return np.zeros(len(rows_of(unit)), np.float32)
    bias = np.abs(np.asarray(value(unit.bias), np.float32)).reshape(-1)
    needed: Floats = (bias / (input_scale * BIAS_STEPS)).astype(np.float32)
    return needed


def positive(scales: Floats) -> Floats:
    """Return ``scales`` raised above zero; 1 for a weight of nothing but zeros.

    Below 1e-20 the product of a scale with that of the input would be denormal.
    """
    least = NEGLIGIBLE if scales.max() > 0 else 1.0
    return np.where(scales > NEGLIGIBLE, scales, least).astype(np.float32)


def _has_rows(unit: Unit) -> bool:
    """Tell whether the first axis of the weight counts output channels."""
    return unit.kind in CONVOLUTIONS or (unit.kind is Kind.GEMM and unit.weight_axis == 0)


def _summed_rows_of(unit: Unit) -> Floats:
    """Return the weight as (C_out, K), K in the order the kernel sums: position, then channel."""
    if unit.kind not in CONVOLUTIONS:
        return rows_of(unit)
    weight = weight_of(unit)
    return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)
