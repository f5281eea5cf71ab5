# SPDX-License-Identifier: Apache-2.0
"""How large fusion units are: multiply-adds and elements, from shapes.

Shapes may hold expressions of free dims (sympy): then so do sizes.
"""

from collections.abc import Sequence
from math import prod

import numpy as np

from qhyvit_onnx.composites import find_composites
from qhyvit_onnx.costs.table import DEPTHWISE_3X3, Size, Target, float_key
from qhyvit_onnx.graph import MOVEMENT, Graph, Tensor, is_constant
from qhyvit_onnx.kinds import CONVOLUTIONS, LAYERS, Kind
from qhyvit_onnx.symbolic.dims import Dim, count
from qhyvit_onnx.units import Unit
from qhyvit_onnx.work import Shapes, multiply_adds


def row_of(unit: Unit) -> str:
    """Return the name of the row that prices ``unit``."""
    if unit.kind is Kind.DEPTHWISE and unit.weight is not None:
        steps = {*unit.node.attrs.get("strides", []), *unit.node.attrs.get("dilations", [])}
        if tuple(unit.weight.shape[2:]) == (3, 3) and steps <= {1}:
            return DEPTHWISE_3X3
    return str(unit.kind)


def elements_of(tensor: Tensor, shapes: Shapes) -> Dim:
    """Return how many elements ``tensor`` has; 0 where that is not known."""
    return count(shapes[tensor.name]) if tensor.name in shapes else 0


def size_of(unit: Unit, shapes: Shapes) -> Size:
    """Return how much work ``unit`` is, counted as cost tables count it; 0 for what is unknown."""
    moved = sum(elements_of(tensor, shapes) for tensor in (*unit.inputs, unit.output))
    if unit.node.op == "AveragePool":
        return Size(elements_of(unit.output, shapes) * prod(unit.node.attrs["kernel_shape"]))
    if unit.kind in CONVOLUTIONS:
        return Size(_macs(unit, shapes), moved, unit.node.attrs.get("group", 1))
    if unit.kind in LAYERS and unit.weight is not None:
        return Size(_macs(unit, shapes), moved + prod(unit.weight.shape))
    return Size(_macs(unit, shapes), moved)


def rest_cost(graph: Graph, units: Sequence[Unit], target: Target, shapes: Shapes) -> float:
    """Return what the nodes outside of all units cost: norms, and element by element.

    A function spelled out in several nodes counts once, as onnxruntime runs it; data movement and
    what works on integers counts nothing.
    """
    covered = {node.name for unit in units for node in unit.nodes}
    total = 0.0
    for composite in find_composites(graph):
        members = {node.name for node in composite.nodes}
        if not members & covered:
            covered |= members
            moved = sum(elements_of(t, shapes) for t in (composite.input, composite.output))
            total += target.cost(float_key(_float_row(composite.kind)), Size(0, moved))
    for node in graph.nodes:
        dtypes = [out.dtype for out in node.outputs if out.dtype is not None]
        floats = all(np.issubdtype(dtype, np.floating) for dtype in dtypes)
        if node.name not in covered and node.op not in MOVEMENT and floats:
            tensors = [t for t in (*node.inputs, *node.outputs) if not is_constant(t)]
            moved = sum(elements_of(tensor, shapes) for tensor in tensors)
            total += target.cost(float_key(_float_row(node.op)), Size(0, moved))
    return total


def _float_row(kind: str) -> str:
    return "norm" if "Norm" in kind else "elementwise"


def _macs(unit: Unit, shapes: Shapes) -> Dim:
    return multiply_adds(unit.node, shapes) or 0
