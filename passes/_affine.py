# SPDX-License-Identifier: Apache-2.0
"""Which nodes are a constant scale and offset per channel, and which layer computes their input."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.graph import LINEAR, Graph, Node, Tensor, is_constant, producer, uses, value
from qhyvit_onnx.kernels.norms import Affine, norm_affine
from qhyvit_onnx.layout.index_map import IndexMap
from qhyvit_onnx.layout.roles import Role, RoleKind
from qhyvit_onnx.passes._layers import Host, carries_bias, host_at, matmul_and_bias, output_axis
from qhyvit_onnx.passes._readers import Moves
from qhyvit_onnx.pattern import Miss


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """A node that scales and shifts each channel of one tensor by constants."""

    node: Node
    input: Tensor
    affine: Affine
    axis: int | None
    """Channel axis of the input; None when one number serves all elements."""


def scaling(node: Node) -> Scaling | Miss | None:
    """Return what ``node`` does per channel; None when it is no candidate at all."""
    if node.op == "BatchNormalization":
        return _norm(node)
    if node.op not in ("Mul", "Add", "Sub", "Div") or len(node.inputs) != 2:
        return None
    return _binary(node)


def _norm(node: Node) -> Scaling | Miss:
    if node.attrs.get("training_mode", 0) or any(out.outputs for out in node.outputs[1:]):
        return Miss("BatchNormalization in training mode", node.name)
    arrays = [value(tensor) for tensor in node.inputs[1:5]]
    if any(array is None for array in arrays):
        return Miss("statistics that are not constant", node.name)
    gamma, beta, mean, var = (np.asarray(array) for array in arrays)
    affine = norm_affine(gamma, beta, mean, var, eps=float(node.attrs.get("epsilon", 1e-5)))
    return Scaling(node, node.inputs[0], affine, 1)


def _binary(node: Node) -> Scaling | None:
    """Return the scaling of a Mul, Add, Sub or Div with one constant operand."""
    at = next((i for i, tensor in enumerate(node.inputs) if is_constant(tensor)), None)
    if at is None or is_constant(node.inputs[1 - at]) or (node.op == "Div" and at == 0):
        return None
    data, held = node.inputs[1 - at], node.inputs[at]
    found = _per_channel(held, data)
    if found is None:
        return None
    array, axis = found
    affine = _affine(node.op, array, constant_first=at == 0)
    if not all(np.isfinite(part).all() for part in affine):
        return None  # a mask: added to a bias it turns into NaN as soon as anything scales that
    return Scaling(node, data, affine, axis)


def _affine(op: str, array: NDArray[np.float64], *, constant_first: bool) -> Affine:
    one, zero = np.ones(1), np.zeros(1)
    if op in ("Mul", "Div"):
        with np.errstate(divide="ignore"):
            return Affine(array if op == "Mul" else 1.0 / array, zero)
    if op == "Sub":
        return Affine(-one, array) if constant_first else Affine(one, -array)
    return Affine(one, array)


def _per_channel(held: Tensor, data: Tensor) -> tuple[NDArray[np.float64], int | None] | None:
    """Return a constant as one number a channel, and the axis; None when it is not per channel."""
    if not np.issubdtype(held.dtype, np.floating):
        return None
    rank = None if data.shape is None else len(data.shape)
    wide = [i - len(held.shape) for i, size in enumerate(held.shape) if size != 1]
    if not wide and (len(held.shape) <= 1 or (rank is not None and len(held.shape) <= rank)):
        return _flat(held), None
    if len(wide) != 1 or rank is None or len(held.shape) > rank:
        return None
    axis = rank + wide[0]
    return (_flat(held), axis) if data.shape[axis] == held.shape[wide[0]] else None


def _flat(held: Tensor) -> NDArray[np.float64]:
    return np.asarray(held.values, dtype=np.float64).reshape(-1)


def host_of(graph: Graph, found: Scaling, moves: Moves) -> Host | Miss:
    """Return the layer before a scaling, or why none can take it over."""
    tensor, way = found.input, None
    while (node := producer(tensor)) is not None:
        ends = node.op in LINEAR or carries_bias(graph, node)
        step = None if ends else _only_move(node, tensor, moves)
        if step is None and not ends:
            break
        if uses(graph, tensor) != 1:
            return Miss(f"other readers of the output of {node.op}", found.node.name)
        if step is None:
            return _checked(graph, node, way, found)
        tensor, way = node.inputs[0], step if way is None else step.then(way)
    return Miss(_no_layer(found.node), found.node.name)


def _only_move(node: Node, tensor: Tensor, moves: Moves) -> IndexMap | None:
    """Return how ``node`` rearranges its first input into ``tensor``, if nothing else is there."""
    held = moves.get(node.name, ())
    alone = len(held) == 1 and held[0].output == tensor.name
    return held[0].map if alone and held[0].map.is_permutation else None


def _no_layer(node: Node) -> str:
    readers = {reader.op for reader in node.outputs[0].outputs}
    return "a layer after it, none before it" if readers & LINEAR else "no layer before it"


def _checked(graph: Graph, node: Node, way: IndexMap | None, found: Scaling) -> Host | Miss:
    """Return the layer at ``node``, when its outputs lie whole on the axis that is scaled."""
    maker = matmul_and_bias(node)[0] if node.op == "Add" else node
    assert maker is not None
    host = host_at(graph, maker)
    if isinstance(host, Miss):
        return Miss(host.reason, found.node.name)
    host = Host(maker, node if node.op == "Add" else None)
    axis = output_axis(maker)
    if found.axis is None:
        return host
    if axis is None:
        return Miss(f"an output of {maker.op} of unknown rank", found.node.name)
    role = Role(RoleKind.WHOLE, (axis,)) if way is None else way.role(axis)
    if role.axes != (found.axis,):
        return Miss(f"another axis than the outputs of {maker.op}", found.node.name)
    if role.kind is not RoleKind.WHOLE:
        return Miss(f"channels that are {role.kind} behind {maker.op}", found.node.name)
    return host
