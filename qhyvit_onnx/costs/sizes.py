# SPDX-License-Identifier: Apache-2.0
"""How large fusion units are: multiply-adds and elements, from shapes.

Shapes may hold expressions of free dims (sympy): then so do sizes.
"""

from collections.abc import Sequence
from math import prod

import numpy as np

from qhyvit_onnx.composites import find_composites
from qhyvit_onnx.costs.table import DEPTHWISE_3X3, MOVING, Size, Target, float_key
from qhyvit_onnx.graph import MOVEMENT, RESHAPING, Graph, Node, Tensor, is_constant, is_output
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
    """Return what the nodes outside of all units cost: norms, element by element, data movement.

    A function spelled out in several nodes counts once, as onnxruntime runs it; what works on
    integers, or becomes part of a product, counts nothing.
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
        if node.name not in covered and floats and not _is_fused(graph, node):
            tensors = [t for t in (*node.inputs, *node.outputs) if not is_constant(t)]
            touched = [] if node.op in RESHAPING else tensors
            moved = sum(elements_of(tensor, shapes) for tensor in touched)
            size = Size(_runs_of(node, shapes), moved)
            total += target.cost(float_key(_float_row(node.op)), size)
    return total


def runs(order: Sequence[int], shape: Sequence[Dim]) -> Dim:
    """Return how many runs of neighbours a Transpose to ``shape`` moves.

    Axes at the end that stay are moved as one.
    """
    last = max((place for place, axis in enumerate(order) if place != axis), default=-1)
    return prod(shape[: last + 1])


def _is_fused(graph: Graph, node: Node) -> bool:
    """Tell whether ``node`` turns matrices for products, whose float kernel takes them so too."""
    order = list(node.attrs.get("perm", ()))
    turned = [*range(len(order) - 2), len(order) - 1, len(order) - 2]
    made = node.outputs[0]
    products = all(reader.op == "MatMul" for reader in made.outputs)
    return len(order) > 1 and order == turned and products and not is_output(graph, made)


def _runs_of(node: Node, shapes: Shapes) -> Dim:
    shape = shapes.get(node.outputs[0].name)
    if node.op != "Transpose" or shape is None:
        return 0
    order = node.attrs.get("perm", tuple(range(len(shape)))[::-1])
    return runs(order, shape)


def _float_row(kind: str) -> str:
    if kind in MOVEMENT:
        return MOVING
    return "norm" if "Norm" in kind else "elementwise"


def _macs(unit: Unit, shapes: Shapes) -> Dim:
    return multiply_adds(unit.node, shapes) or 0
