# SPDX-License-Identifier: Apache-2.0
"""Ways in: attentions that read what a local anchor mixed last, or that join two streams."""

from qhyvit_onnx.graph import Tensor
from qhyvit_onnx.passes._bridges.ancestry import members
from qhyvit_onnx.passes._bridges.anchors import operands
from qhyvit_onnx.passes._bridges.attentions import Attention, Crossing, output_layer
from qhyvit_onnx.passes._bridges.climb import Test, nearest_layers
from qhyvit_onnx.passes._bridges.passage import Passage
from qhyvit_onnx.passes._bridges.sizes import Sizes, shown
from qhyvit_onnx.passes._bridges.streams import Streams


def way_in(streams: Streams, attention: Attention, sizes: Sizes) -> Passage | None:
    """Return how ``attention`` is reached from the other side, None when it stays on its own.

    The last layers before are those nearest above its projections; without projections, nearest
    above its products.
    """
    test, crossed = _crossed(streams, attention)
    if not crossed:
        return None
    ancestry = streams.ancestry
    first = final = nodes = 0
    for tensor in crossed:
        for after, reads in _first_after(streams, attention, tensor, test):
            final |= 1 << after
            nodes |= 1 << after | 1 << ancestry.with_bias(after)
            for before in {place for t in reads for place in nearest_layers(streams, t, test)}:
                first |= 1 << before
                nodes |= ancestry.between(before, after, avoid=streams.anchors.all)
    joins = attention.crossing is not Crossing.NONE
    direction = attention.crossing if joins else Crossing.IN
    size = _size(streams, attention, sizes)
    return Passage(
        direction=direction,
        size=size,
        between_streams=joins,
        anchor=attention.result,
        first=first,
        final=final,
        nodes=nodes,
    )


def _crossed(streams: Streams, attention: Attention) -> tuple[Test, list[Tensor]]:
    """Return what tells the other side's stream, and the operands that come from it."""
    if attention.crossing is not Crossing.NONE:
        wanted = attention.crossing is Crossing.IN
        found = [t for t in attention.operands if streams.is_feature(t) is wanted]
        return lambda tensor: streams.is_feature(tensor) is wanted, found

    def is_local(tensor: Tensor) -> bool:
        return bool(streams.latest(tensor) & streams.anchors.local)

    return is_local, list(filter(is_local, (*attention.operands, *attention.factors)))


def _first_after(
    streams: Streams, attention: Attention, tensor: Tensor, test: Test
) -> list[tuple[int, list[Tensor]]]:
    """Return the first layers after the crossing, and what they read of the other side."""
    layers = [
        place
        for place in nearest_layers(streams, tensor, test)
        if _is_projection(streams, attention, place)
    ]
    if layers:
        return [(place, streams.carried[place]) for place in layers]
    ancestry = streams.ancestry
    reading = (
        place
        for place in attention.products
        if any(other is tensor for other in operands(ancestry, place))
    )
    return [(next(reading, attention.result), [tensor])]


def _is_projection(streams: Streams, attention: Attention, place: int) -> bool:
    """Tell whether a layer makes a query, key or value, rather than the stream these are made of.

    All it makes goes into the attention: the first node that every path out of it shares comes no
    later than the first layer after the attention's result.
    """
    ancestry = streams.ancestry
    if not ancestry.layers >> place & 1 or streams.anchors.local >> place & 1:
        return False
    shared = next(members(ancestry.meets[place] & ancestry.below[attention.result]), None)
    if shared is None:
        return False
    inside = ancestry.between(attention.result, shared) & ancestry.layers
    return not inside & ~(1 << shared)


def _size(streams: Streams, attention: Attention, sizes: Sizes) -> str:
    """Return the size at which the result is written: where the first layer after it reads it.

    An attention between streams has the size of the map it looks at, or that looks.
    """
    layer = output_layer(streams, attention.result)
    if layer is None or attention.crossing is not Crossing.NONE:
        return shown(sizes.of(streams.ancestry.nodes[attention.result].outputs[0]))
    return shown(sizes.of(layer[1]))
