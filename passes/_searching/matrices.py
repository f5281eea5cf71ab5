# SPDX-License-Identifier: Apache-2.0
"""The weight of a layer as a matrix: one row an output channel, group by group."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.graph import value
from qhyvit_onnx.units import CONVOLUTIONS, Kind, Unit


def weight_of(unit: Unit) -> NDArray[np.float32]:
    """Return the weight of a layer."""
    weight = value(unit.weight)
    assert weight is not None  # a layer has one
    return np.asarray(weight, np.float32)


def rows_of(unit: Unit) -> NDArray[np.float32]:
    """Return the weight as (C_out, K), K in the order in which evidence counts it."""
    weight = weight_of(unit)
    if unit.kind in CONVOLUTIONS:
        return weight.reshape(weight.shape[0], -1)
    if unit.kind is Kind.GEMM and unit.weight_axis == 0:
        return weight
    return np.ascontiguousarray(np.swapaxes(weight, -1, -2)).reshape(-1, weight.shape[-2])


def from_rows(unit: Unit, rows: NDArray[Any]) -> NDArray[Any]:
    """Return ``rows`` in the shape of the weight."""
    shape = weight_of(unit).shape
    if unit.kind in CONVOLUTIONS or (unit.kind is Kind.GEMM and unit.weight_axis == 0):
        return rows.reshape(shape)
    return np.ascontiguousarray(
        np.swapaxes(rows.reshape(*shape[:-2], shape[-1], shape[-2]), -1, -2)
    )


def summed_rows_of(unit: Unit) -> NDArray[np.float32]:
    """Return the weight as (C_out, K), K in the order the kernel sums: position, then channel."""
    weight = weight_of(unit)
    if unit.kind in CONVOLUTIONS:
        return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)
    return rows_of(unit)


def is_stacked(unit: Unit) -> bool:
    """Tell whether the weight is a stack of matrices: kernels take one scale for all."""
    return unit.kind is Kind.MATMUL and weight_of(unit).ndim > 2
