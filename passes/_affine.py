# SPDX-License-Identifier: Apache-2.0
"""Which nodes are a constant scale and offset per channel, and which layer computes their input."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.graph import (
    LINEAR,
    Graph,
    Node,
    Tensor,
    is_constant,
    operand,
    producer,
    uses,
    value,
)
from qhyvit_onnx.kernels.norms import Affine, norm_affine
from qhyvit_onnx.passes._channel import axis_above
from qhyvit_onnx.pattern import Miss

CROSSED = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})
"""Ops between layer and norm: each element of their output is one element of their input."""


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """A node that scales and shifts each channel of one tensor by constants."""

    node: Node
    input: Tensor
    affine: Affine
    axis: int | None
    """Channel axis of the input; None when one number serves all elements."""


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """The layer that can take a scaling over."""

    node: Node
    bias_node: Node | None
    """The Add behind a MatMul that carries its bias."""


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
    return Scaling(node, data, _affine(node.op, array, constant_first=at == 0), axis)


def _affine(op: str, array: NDArray[np.float64], *, constant_first: bool) -> Affine:
    one, zero = np.ones(1), np.zeros(1)
    if op in ("Mul", "Div"):
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


def host_of(graph: Graph, found: Scaling) -> Host | Miss:
    """Return the layer before a scaling, or why none can take it over."""
    tensor, axis = found.input, found.axis
    while (node := producer(tensor)) is not None:
        ends = node.op in LINEAR or _carries_bias(graph, node)
        if not ends and node.op not in CROSSED:
            break
        if uses(graph, tensor) != 1:
            return Miss(f"other readers of the output of {node.op}", found.node.name)
        if ends:
            return _checked(node, axis, found)
        above = None if axis is None else axis_above(node, axis)
        if axis is not None and above is None:
            return Miss(f"channels that do not stay whole across {node.op}", found.node.name)
        tensor, axis = node.inputs[0], above
    return Miss(_no_layer(found.node), found.node.name)


def _no_layer(node: Node) -> str:
    readers = {reader.op for reader in node.outputs[0].outputs}
    return "a layer after it, none before it" if readers & LINEAR else "no layer before it"


def _carries_bias(graph: Graph, node: Node) -> bool:
    """Tell whether ``node`` adds the bias of a MatMul: one number for each of its columns."""
    if node.op != "Add":
        return False
    maker, held = _matmul_and_bias(node)
    if maker is None or held is None or uses(graph, maker.outputs[0]) != 1:
        return False
    weight, out = operand(maker, 1), maker.outputs[0].shape
    if weight is None or not is_constant(weight) or not held.shape:
        return False
    widens = len(held.shape) > (1 if out is None else len(out))
    return not widens and held.shape[-1] == _volume(held.shape) == weight.shape[-1]


def _matmul_and_bias(node: Node) -> tuple[Node | None, Tensor | None]:
    held = next((tensor for tensor in node.inputs if is_constant(tensor)), None)
    makers = [producer(tensor) for tensor in node.inputs if not is_constant(tensor)]
    maker = makers[0] if len(makers) == 1 else None
    return (maker if maker is not None and maker.op == "MatMul" else None), held


def _checked(node: Node, axis: int | None, found: Scaling) -> Host | Miss:
    """Return ``node`` as the host, when its weight is constant and its outputs are ``axis``."""
    maker = _matmul_and_bias(node)[0] if node.op == "Add" else node
    assert maker is not None
    weight = operand(maker, 1)
    if weight is None or not is_constant(weight):
        return Miss(f"{maker.op} of two activations", found.node.name)
    if len(weight.shape) < 2:  # a matrix times a vector has no output channels
        return Miss(f"{maker.op} by a vector", found.node.name)
    if axis is not None and axis != _output_axis(maker):
        return Miss(f"another axis than the outputs of {maker.op}", found.node.name)
    return Host(maker, node if node.op == "Add" else None)


def _output_axis(node: Node) -> int | None:
    """Return the axis of the output along which the weight's outputs lie."""
    if node.op != "MatMul":
        return 1
    shape = node.outputs[0].shape
    return None if shape is None else len(shape) - 1


def _volume(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))
