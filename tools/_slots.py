# SPDX-License-Identifier: Apache-2.0
"""The constants through which a node scales and shifts the channels of what it writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.graph import (
    Graph,
    Node,
    Tensor,
    constant,
    fresh,
    is_constant,
    make_node,
    names,
    operand,
    sole_consumer,
    value,
    variable,
)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A constant operand with one number or one row a channel along ``axis``."""

    node: Node
    index: int
    axis: int

    @property
    def array(self) -> Array:
        """What it holds, in float64."""
        return np.asarray(self.node.inputs[self.index].values, np.float64)

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return int(self.array.shape[self.axis])

    def along(self, channels: Array) -> Array:
        """Return ``channels`` (C,) shaped to broadcast against the constant."""
        shape = [1] * self.array.ndim
        shape[self.axis] = -1
        return channels.reshape(shape)

    def write(self, graph: Graph, array: Array) -> None:
        """Put a new constant there: the old one may have other readers."""
        old = self.node.inputs[self.index]
        name = fresh(f"{old.name}.injected", names(graph))
        self.node.inputs[self.index] = constant(name, array.astype(old.values.dtype))


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A node that gives every channel of ``output`` a constant scale."""

    node: Node
    output: Tensor
    gain: Slot
    behind: int
    """Axes of ``output`` behind the channel axis."""


def sources(graph: Graph) -> Iterator[Source]:
    """Yield every node that scales channels by constants: norms, Mul with Add, layers."""
    for node in graph.nodes:
        found = _source_at(graph, node)
        if found is not None and found.gain.channels > 1:
            yield found


def _source_at(graph: Graph, node: Node) -> Source | None:
    if node.op == "LayerNormalization":
        scale = value(node.inputs[1])
        flat = scale is not None and scale.ndim == 1
        return Source(node, node.outputs[0], Slot(node, 1, 0), 0) if flat else None
    if node.op == "Mul":
        return _affine_at(graph, node)
    axes = layer_axes(node)
    if axes is None:
        return None
    add = _bias_add(graph, node)
    output = node.outputs[0] if add is None else add.outputs[0]
    behind = node.inputs[1].values.ndim - 2 if node.op == "Conv" else 0
    return Source(node, output, Slot(node, 1, axes[0]), behind)


def _affine_at(graph: Graph, node: Node) -> Source | None:
    """Return Mul and Add by constants per channel: a norm that is spelled out ends so."""
    add = sole_consumer(graph, node.outputs[0])
    gain, offset = _channel_slot(node), None if add is None else _channel_slot(add)
    if add is None or add.op != "Add" or gain is None or offset is None:
        return None
    behind = _behind(gain)
    same = gain.channels == offset.channels and behind == _behind(offset)
    return Source(node, add.outputs[0], gain, behind) if same else None


def _behind(slot: Slot) -> int:
    return slot.array.ndim - 1 - slot.axis


def _channel_slot(node: Node) -> Slot | None:
    """Return the operand that is constant and differs along one axis only."""
    held = [index for index, tensor in enumerate(node.inputs) if is_constant(tensor)]
    if len(held) != 1:
        return None
    wide = [axis for axis, size in enumerate(node.inputs[held[0]].values.shape) if size != 1]
    return Slot(node, held[0], wide[0]) if len(wide) == 1 else None


def layer_axes(node: Node) -> tuple[int, int] | None:
    """Return the axes of outputs and inputs in the weight of a layer; None for other nodes."""
    weight = value(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None or is_constant(node.inputs[0]):
        return None
    if node.op == "Conv":
        return 0, 1
    if node.op == "MatMul":
        return (1, 0) if weight.ndim == 2 else None
    axes = (0, 1) if node.attrs.get("transB", 0) else (1, 0)
    return axes if node.op == "Gemm" and _is_plain(node, weight.shape[axes[0]]) else None


def _is_plain(node: Node, rows: int) -> bool:
    """Tell whether a Gemm is weight times input plus one constant a row."""
    factors = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    if node.attrs.get("transA", 0) or factors != (1.0, 1.0):
        return False
    bias = operand(node, 2)
    held = None if bias is None else value(bias)
    return bias is None or (held is not None and held.size == held.shape[-1] == rows)


def offset_slot(graph: Graph, source: Node) -> Slot:
    """Return the constant that ``source`` adds to its channels; zeros are put where none is."""
    if source.op == "Mul":
        found = _channel_slot(sole_consumer(graph, source.outputs[0]))
        assert found is not None  # ``sources`` yields no Mul without it
        return found
    if source.op == "MatMul":
        add = _bias_add(graph, source) or _added(graph, source)
        found = _channel_slot(add)
        assert found is not None
        return found
    if operand(source, 2) is None:
        axes, weight = layer_axes(source), source.inputs[1].values
        zeros = _zeros(graph, source, weight.shape[0 if axes is None else axes[0]])
        source.inputs = [*source.inputs[:2], zeros]
    return Slot(source, 2, source.inputs[2].values.ndim - 1)


def _bias_add(graph: Graph, node: Node) -> Node | None:
    """Return the Add behind a MatMul that adds one constant to each of its columns."""
    add = sole_consumer(graph, node.outputs[0]) if node.op == "MatMul" else None
    slot = _channel_slot(add) if add is not None and add.op == "Add" else None
    if slot is None or _behind(slot):
        return None
    return add if slot.channels == node.inputs[1].values.shape[1] else None


def _added(graph: Graph, node: Node) -> Node:
    """Put an Add of zeros behind a MatMul without a bias."""
    out = node.outputs[0]
    inner = variable(fresh(f"{out.name}.product", names(graph)), out)
    node.outputs = [inner]
    operands = [inner, _zeros(graph, node, node.inputs[1].values.shape[1])]
    add = make_node("Add", fresh(f"{node.name}/bias", names(graph)), operands, [out])
    graph.nodes.insert(next(i for i, n in enumerate(graph.nodes) if n is node) + 1, add)
    return add


def _zeros(graph: Graph, node: Node, size: int) -> Tensor:
    name = fresh(f"{node.name}.bias", names(graph))
    return constant(name, np.zeros(size, node.inputs[1].values.dtype))
