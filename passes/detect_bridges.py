# SPDX-License-Identifier: Apache-2.0
"""Finds the bridges between convolution (local mixing) and transformer (global mixing).

First version, for networks whose two worlds take turns. A *local* anchor mixes neighbours (a
convolution or pooling with a kernel above 1), a *global* anchor mixes every position with every
other (a product of two activations, or a softmax that weighs activations). Every tensor takes the
side of the latest anchors above it, global winning where residual paths meet; an anchor fed from
the other side is a crossing. Crossings of one direction at one resolution form one bridge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from qhyvit_onnx.facts import BRIDGES, Bridge
from qhyvit_onnx.graph import LINEAR, Node, Tensor, is_constant, producer
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.state import State


class Side(StrEnum):
    """What mixed the positions of a tensor last."""

    NONE = "none"
    LOCAL = "local"
    GLOBAL = "global"


@dataclass(frozen=True)
class DetectBridges(Pass):
    """Name every hand-over between the two worlds; changes nothing."""

    name = "detect-bridges"
    summary = "local regions, global regions, the crossings between them"
    gives = (BRIDGES,)

    def run(self, state: State) -> Outcome:
        """Put BRIDGES."""
        crossings: dict[tuple[str, str], list[Node]] = {}
        sides: dict[int, Side] = {}
        for node in state.graph.nodes:
            fed, own = _fed_by(node, sides), anchor_of(node)
            if _crosses(fed, own):
                direction = "in" if own is Side.GLOBAL else "out"
                crossings.setdefault((direction, _resolution(node)), []).append(node)
            side = fed if own is Side.NONE else own
            sides.update({id(out): side for out in node.outputs})
        bridges = tuple(_bridge(key, nodes) for key, nodes in crossings.items())
        state.put(BRIDGES, bridges)
        entries = sum(bridge.direction == "in" for bridge in bridges)
        exits = len(bridges) - entries
        return Outcome(0, f"bridges: {entries} into global regions, {exits} out of them")


def anchor_of(node: Node) -> Side:
    """Return the side that ``node`` puts its outputs on, NONE when it mixes no positions."""
    if node.op in {"Conv", "ConvTranspose"}:
        kernel = node.attrs.get("kernel_shape") or list(node.inputs[1].shape or ())[2:]
        return Side.LOCAL if prod(kernel) > 1 else Side.NONE
    if node.op in {"AveragePool", "MaxPool"}:
        return Side.LOCAL
    if node.op == "MatMul" and not any(is_constant(tensor) for tensor in node.inputs):
        return Side.GLOBAL
    if node.op == "Softmax" and node.outputs and _weighs(node.outputs[0]):
        return Side.GLOBAL
    return Side.NONE


def _weighs(tensor: Tensor) -> bool:
    """Tell whether a softmax weighs activations (attention), rather than leaves the net."""
    readers = tensor.outputs
    return any(
        node.op == "Mul" and not any(is_constant(t) for t in node.inputs) for node in readers
    )


def _fed_by(node: Node, sides: dict[int, Side]) -> Side:
    found = {sides.get(id(tensor), Side.NONE) for tensor in node.inputs}
    return next((side for side in (Side.GLOBAL, Side.LOCAL) if side in found), Side.NONE)


def _crosses(fed: Side, own: Side) -> bool:
    return own is not Side.NONE and fed is not Side.NONE and own is not fed


def _resolution(node: Node) -> str:
    """Return the size of the map the crossing works on, read at the nearest 4-D tensor above it."""
    queue, seen = list(node.inputs), set()
    for tensor in queue:
        above = producer(tensor)
        shape = tensor.shape
        if (
            shape is not None
            and len(shape) == 4
            and above is not None
            and above.op in {"Conv", "Concat"}
        ):
            return "x".join("?" if dim is None else str(dim) for dim in shape[2:])
        if above is not None and id(above) not in seen:
            seen.add(id(above))
            queue.extend(above.inputs)
    return "unknown size"


def _bridge(key: tuple[str, str], nodes: Sequence[Node]) -> Bridge:
    direction, size = key
    inside: dict[str, None] = {}
    for node in nodes:
        for name in _hand_over(node):
            inside[name] = None
    worlds = ("local", "global") if direction == "in" else ("global", "local")
    why = f"{worlds[0]} features of {size} reach {worlds[1]} mixing at {nodes[0].name}"
    return Bridge(direction, tuple(inside), why)


def _hand_over(anchor: Node) -> list[str]:
    """Return the names from the last linear layers before the crossing to ``anchor``.

    Two linear layers are passed on each path: the projection into the anchor (for attention q, k,
    v) and the layer that ends the region before it.
    """
    limit = 1 if anchor.op in LINEAR and anchor_of(anchor) is Side.LOCAL else 2
    found: dict[str, None] = {anchor.name: None}
    frontier = [(tensor, 0) for tensor in anchor.inputs]
    for tensor, passed in frontier:
        node = producer(tensor)
        if node is None or node.name in found:
            continue
        found[node.name] = None
        layers = passed + int(_is_layer(node))
        if layers < limit and anchor_of(node) is Side.NONE:
            frontier.extend((above, layers) for above in node.inputs)
    return list(reversed(found))


def _is_layer(node: Node) -> bool:
    return node.op in LINEAR and any(is_constant(tensor) for tensor in node.inputs)
