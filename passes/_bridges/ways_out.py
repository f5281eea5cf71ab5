# SPDX-License-Identifier: Apache-2.0
"""Ways out: local anchors that read what an attention mixed last."""

from collections.abc import Sequence

from qhyvit_onnx.graph import Tensor
from qhyvit_onnx.passes._bridges.ancestry import union
from qhyvit_onnx.passes._bridges.attentions import Crossing, output_layer
from qhyvit_onnx.passes._bridges.climb import Test, ways_up
from qhyvit_onnx.passes._bridges.passage import Passage
from qhyvit_onnx.passes._bridges.sizes import Sizes, shown
from qhyvit_onnx.passes._bridges.streams import Streams

RELAYOUT = frozenset({
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth",
    "Col2Im",
})  # fmt: skip
"""Ops that turn tokens into a map."""
BLENDS = frozenset({"Add", "Sub", "Sum", "Mean", "Concat"})
"""Ops in which local features join what comes out of a global region."""


def way_out(streams: Streams, place: int, sizes: Sizes, returned: int) -> Passage | None:
    """Return how a local anchor is reached from an attention, None when it is not.

    ``returned`` are products that gave tokens back to the features: crossings already.
    The crossing is where tokens become a map last. When local features join after that, it ends
    with the anchor, which fuses the two; else with the first layer that reads the map.
    """
    tops = union(map(streams.latest, streams.carried[place]))
    tops &= streams.anchors.everywhere & ~returned
    if not tops:
        return None
    chain = _chain(streams, place, tops)
    turn = _turn(streams, chain)
    ancestry = streams.ancestry
    stops = ancestry.layers | tops
    before = next(item for item in chain[turn:] if stops >> item & 1)
    after = next((item for item in reversed(chain[:turn]) if ancestry.layers >> item & 1), None)
    if after is None:  # a Resize or pooling: the first layer comes after the anchor
        layer = output_layer(streams, place)
        final = after = place if layer is None else layer[0]
    else:
        mixed = _is_blended(streams, chain[1 : chain.index(after)], _carries(streams, tops))
        final = place if mixed else after
    size = shown(sizes.of(streams.carried[after][0]))
    return Passage(
        direction=Crossing.OUT,
        size=size,
        between_streams=False,
        anchor=place,
        first=1 << before,
        final=1 << final,
        nodes=ancestry.between(before, final) | 1 << ancestry.with_bias(final),
    )


def _carries(streams: Streams, tops: int) -> Test:
    return lambda tensor: bool(streams.latest(tensor) & tops)


def _chain(streams: Streams, place: int, tops: int) -> list[int]:
    """Return the nodes from a local anchor up to the product of attention that it reads."""
    chain, source = [place], streams.ancestry.source
    while not tops >> chain[-1] & 1:
        ways = ways_up(streams, chain[-1], _carries(streams, tops))
        chain.append(max(map(source, ways)))
    return chain


def _turn(streams: Streams, chain: Sequence[int]) -> int:
    """Return where in ``chain``, bottom up, the last change of layout is; its end without one.

    A run of reshapes and transposes that ends in the shape it began with moves channels only.
    """
    nodes, start = streams.ancestry.nodes, None
    for index, place in enumerate(chain):
        if nodes[place].op in RELAYOUT:
            start = index if start is None else start
        elif start is not None:
            if not _same_shape(nodes[chain[index - 1]].inputs[0], nodes[chain[start]].outputs[0]):
                return start
            start = None
    return len(chain) - 1


def _same_shape(first: Tensor, second: Tensor) -> bool:
    known = first.shape is not None and None not in first.shape
    return known and first.shape == second.shape


def _is_blended(streams: Streams, places: Sequence[int], test: Test) -> bool:
    return any(
        streams.ancestry.nodes[place].op in BLENDS
        and any(streams.is_feature(t) and not test(t) for t in streams.carried[place])
        for place in places
    )
