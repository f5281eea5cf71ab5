# SPDX-License-Identifier: Apache-2.0
"""Attentions: products of activations put together, and which of them join two streams."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from qhyvit_onnx.graph import MOVEMENT, Tensor, producer, walk_up
from qhyvit_onnx.passes._bridges.ancestry import members, union
from qhyvit_onnx.passes._bridges.anchors import operands
from qhyvit_onnx.passes._bridges.streams import Streams

_ORIENTING = MOVEMENT - {"MaxPool"}


class Crossing(StrEnum):
    """How an attention joins tokens and features."""

    NONE = "none"
    """Query, key and value come from one stream."""
    IN = "in"
    """Tokens ask features."""
    OUT = "out"
    """Features ask tokens."""


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention, whatever its kind."""

    products: tuple[int, ...]
    """Its global anchors: QK and AV for softmax attention, KV and Q(KV) for linear attention."""
    operands: tuple[Tensor, ...]
    """What they multiply, the results of its own products left out: query, key and value."""
    factors: tuple[Tensor, ...]
    """What scales the result before the next layer: the value of separable attention."""
    crossing: Crossing

    @property
    def result(self) -> int:
        """Its last product."""
        return self.products[-1]


def find_attentions(streams: Streams) -> list[Attention]:
    """Return every attention, in topological order."""
    groups: dict[int, tuple[int, ...]] = {}
    for place in members(streams.anchors.everywhere):
        earlier = {groups[inner] for inner in _continued(streams, place)}
        group = (*sorted({member for one in earlier for member in one}), place)
        groups.update(dict.fromkeys(group, group))
    return [_attention(streams, group) for group in dict.fromkeys(groups.values())]


def output_layer(streams: Streams, place: int) -> tuple[int, Tensor] | None:
    """Return the first layer below ``place`` and the activation by which it is reached."""
    found = list(_below(streams, place, streams.ancestry.layers | streams.anchors.everywhere))
    layers = [item for item in found if streams.ancestry.layers >> item[0] & 1]
    return min(layers, key=lambda item: item[0], default=None)


def _below(streams: Streams, place: int, stop: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (node, activation that reached it) below ``place``, each node once, up to ``stop``."""
    ancestry, seen, queue = streams.ancestry, 0, [place]
    for node in queue:
        written = {id(tensor) for tensor in ancestry.nodes[node].outputs}
        for reader in ancestry.readers[node]:
            via = [tensor for tensor in streams.carried[reader] if id(tensor) in written]
            if not via or seen >> reader & 1:
                continue
            seen |= 1 << reader
            yield reader, via[0]
            if not stop >> reader & 1:
                queue.append(reader)


def _continued(streams: Streams, place: int) -> list[int]:
    """Return the products whose result this one goes on with, as AV goes on with QK.

    Such a result is one operand, goes nowhere else, and the other operand does not depend on it;
    the query of a next attention, which follows a residual stream, fails on one of the three.
    """
    ancestry, tensors = streams.ancestry, operands(streams.ancestry, place)
    found: list[int] = []
    for tensor in tensors:
        inner = list(members(streams.latest(tensor)))
        rest = [other for other in tensors if other is not tensor]
        if rest and all(
            streams.anchors.everywhere >> product & 1
            and ancestry.meets[product] >> place & 1
            and not any(ancestry.up(other) >> product & 1 for other in rest)
            for product in inner
        ):
            found += inner
    return found


def _attention(streams: Streams, group: tuple[int, ...]) -> Attention:
    own = union(1 << place for place in group)
    found = {
        id(tensor): tensor
        for place in group
        for tensor in operands(streams.ancestry, place)
        if not streams.latest(tensor) & own
    }
    outer, factors = tuple(found.values()), _factors(streams, group[-1])
    return Attention(group, outer, factors, _crossing(streams, group, outer, factors))


def _factors(streams: Streams, result: int) -> tuple[Tensor, ...]:
    stop = streams.ancestry.layers | streams.anchors.all
    return tuple(
        tensor
        for place, _ in _below(streams, result, stop)
        if streams.ancestry.nodes[place].op == "Mul"
        for tensor in streams.carried[place]
        if not streams.ancestry.up(tensor) >> result & 1
    )


def _crossing(
    streams: Streams, group: Sequence[int], outer: Sequence[Tensor], factors: Sequence[Tensor]
) -> Crossing:
    """Tell which stream asks which: key and value agree, the query is the odd one out."""
    features = sum(map(streams.is_feature, outer))
    if len(outer) == 3 and features in (1, 2):
        return Crossing.IN if features == 2 else Crossing.OUT
    back = any(map(streams.is_feature, factors))
    if len(group) == 1 and features == len(outer) and not back and _constants_ask(outer):
        return Crossing.IN
    return Crossing.NONE


def _constants_ask(outer: Sequence[Tensor]) -> bool:
    """Tell whether the query of an attention with one product is constant.

    The product of a constant query with the keys is a layer like any other; what is left is the
    product of Softmax weights and the value.
    """
    above = (producer(walk_up(tensor, _ORIENTING)) for tensor in outer)
    return any(node is not None and node.op == "Softmax" for node in above)
