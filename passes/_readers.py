# SPDX-License-Identifier: Apache-2.0
"""Which linear layers read the channels of a tensor, looking through proven data movement."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.graph import Graph, Node, Tensor, axes_of, is_output
from qhyvit_onnx.layout.index_map import IndexMap
from qhyvit_onnx.layout.moves import Move
from qhyvit_onnx.passes._layers import Host, host_at
from qhyvit_onnx.pattern import Miss

Ids = NDArray[np.int64]
"""Channel numbers, broadcastable against a tensor; FOREIGN where an element is of no channel."""

FOREIGN = -1
Moves = Mapping[str, tuple[Move, ...]]
"""By node name."""


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A layer that reads channels of a tensor.

    Shapes:
        ids (C_in,): the channel that each input of the layer reads.
    """

    host: Host
    ids: Ids

    @property
    def pads(self) -> bool:
        """Whether zeros that are no data reach the kernel: a shift would be missing there.

        A transposed convolution does not bring every input to every output: the same.
        """
        node = self.host.node
        stacked = node.op == "MatMul" and len(node.inputs[1].shape) > 2
        return pads(node) or stacked or node.op == "ConvTranspose"


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Channels of a tensor, and the movement since: one step may mix what the next sets right.

    MobileViT folds patches by merging batch and channels into one axis and splitting it again.
    """

    origin: Ids
    map: IndexMap | None = None
    """From the tensor that ``origin`` lies on; None before any movement."""

    def ids(self) -> Ids | None:
        """Return the channels where they lie now; None when that cannot be said."""
        return self.origin if self.map is None else self.map.pull(self.origin, FOREIGN)

    def moved(self, step: IndexMap) -> "Placed":
        """Return the channels after one more movement."""
        return Placed(self.origin, step if self.map is None else self.map.then(step))


def pads(node: Node) -> bool:
    """Tell whether ``node`` puts zeros, or nothing, around what it reads."""
    same = str(node.attrs.get("auto_pad", "NOTSET")).startswith("SAME")
    return same or any(node.attrs.get("pads") or ())


def readers_of(graph: Graph, moves: Moves, tensor: Tensor, ids: Ids) -> list[Reader] | Miss:
    """Return every layer that reads ``tensor``; a Miss when anything but a layer does."""
    inside = {id(node) for node in graph.nodes}
    found: list[Reader] = []
    queue = [(tensor, Placed(ids))]
    for held, placed in queue:
        if is_output(graph, held):
            return Miss("a graph output", held.name)
        for node in {id(node): node for node in held.outputs}.values():  # twice: Concat(x, x)
            if id(node) not in inside:
                return Miss("a reader inside control flow", node.name)
            if moved := list(moved_on(node, held, placed, moves)):
                queue.extend(moved)
                continue
            marks = placed.ids()
            if marks is not None and (mean := averaged(node, marks)) is not None:
                queue.append((node.outputs[0], Placed(mean)))
                continue
            reader = (
                Miss("channels that cannot be told apart there", node.name)
                if marks is None
                else layer_reading(graph, node, held, marks)
            )
            if isinstance(reader, Miss):
                return reader
            found.append(reader)
    return found or Miss("no reader", tensor.name)


def moved_on(
    node: Node, tensor: Tensor, placed: Placed, moves: Moves
) -> Iterator[tuple[Tensor, Placed]]:
    """Yield where ``node`` moves ``tensor`` to, with the channels there."""
    outputs = {out.name: out for out in node.outputs}
    for move in moves.get(node.name, ()):
        if move.input == tensor.name:
            yield outputs[move.output], placed.moved(move.map)


def averaged(node: Node, ids: Ids) -> Ids | None:
    """Return the channels behind a mean over positions of each channel; None for anything else."""
    if node.op == "GlobalAveragePool":
        return ids if all(size == 1 for size in ids.shape[2:]) else None
    axes = axes_of(node) if node.op == "ReduceMean" else None
    if not axes or any(ids.shape[axis] != 1 for axis in axes):
        return None
    return ids if node.attrs.get("keepdims", 1) else ids.squeeze(tuple(axes))


def layer_reading(graph: Graph, node: Node, tensor: Tensor, ids: Ids) -> Reader | Miss:
    """Return ``node`` as a reader whose weight has one column for each channel of ``ids``."""
    host = host_at(graph, node)
    if isinstance(host, Miss):
        return host
    if sum(held is tensor for held in node.inputs) != 1 or node.inputs[0] is not tensor:
        return Miss(f"{node.op} reads it in another place too", node.name)
    if node.attrs.get("transA", 0):
        return Miss("a transposed Gemm", node.name)
    axis = ids.ndim - 1 if node.op == "MatMul" else 1
    if any(size != 1 for at, size in enumerate(ids.shape) if at != axis):
        return Miss(f"channels that are not the inputs of {node.op}", node.name)
    inputs = _inputs(node)
    if ids.shape[axis] not in (1, inputs):
        return Miss(f"{ids.shape[axis]} channels for {inputs} inputs of {node.op}", node.name)
    return Reader(host, np.broadcast_to(ids.reshape(-1), (inputs,)))


def _inputs(node: Node) -> int:
    """Return how many input channels the weight of ``node`` has."""
    shape = node.inputs[1].shape
    if node.op == "Conv":
        return int(shape[1]) * int(node.attrs.get("group", 1))
    if node.op == "Gemm":
        return int(shape[1] if node.attrs.get("transB", 0) else shape[0])
    return int(shape[0] if node.op == "ConvTranspose" else shape[-2])
