# SPDX-License-Identifier: Apache-2.0
"""Finds the regions of a hybrid network and the bridges between them.

Anchors mix positions: windows that overlap their neighbours on the local side, products of two
activations on the global side. An anchor that reads what the other side mixed last is a crossing;
the crossings of one direction at one size form one bridge. An attention between tokens and features
that run side by side is a bridge of its own.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qhyvit_onnx.facts import BRIDGES, REGIONS, Bridge
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes._bridges.ancestry import Ancestry, members, union
from qhyvit_onnx.passes._bridges.anchors import Anchors
from qhyvit_onnx.passes._bridges.attentions import Attention, Crossing, find_attentions
from qhyvit_onnx.passes._bridges.passage import Passage
from qhyvit_onnx.passes._bridges.regions import find_regions
from qhyvit_onnx.passes._bridges.sizes import Sizes
from qhyvit_onnx.passes._bridges.streams import Streams
from qhyvit_onnx.passes._bridges.ways_in import way_in
from qhyvit_onnx.passes._bridges.ways_out import way_out
from qhyvit_onnx.state import State

TELLING: Mapping[tuple[Crossing, bool], str] = {
    (Crossing.IN, False): "local features reach attention",
    (Crossing.OUT, False): "attention reaches local mixing",
    (Crossing.IN, True): "tokens ask features",
    (Crossing.OUT, True): "features ask tokens",
}
"""What crosses, by direction and whether between streams."""


@dataclass(frozen=True)
class DetectBridges(Pass):
    """Name every region and every hand-over between the two worlds; changes nothing."""

    name = "detect-bridges"
    summary = "local regions, global regions, the crossings between them"
    gives = (REGIONS, BRIDGES)

    def run(self, state: State) -> Outcome:
        """Put REGIONS and BRIDGES."""
        streams = Streams(Ancestry(state.graph))
        attentions = find_attentions(streams)
        sizes = Sizes(streams, attentions)
        passages = _passages(streams, attentions, sizes)
        state.put(REGIONS, find_regions(streams, sizes, passages))
        state.put(BRIDGES, _bridges(streams.ancestry, passages))
        return Outcome(0, _note(streams.anchors, passages), streams.anchors.misses)


def _passages(streams: Streams, attentions: Sequence[Attention], sizes: Sizes) -> list[Passage]:
    """Return every crossing, in topological order of the anchor that is reached."""
    returned = union(
        1 << place
        for attention in attentions
        if attention.crossing is Crossing.OUT
        for place in attention.products
    )
    found = [way_in(streams, attention, sizes) for attention in attentions]
    for place in members(streams.anchors.local):
        found.append(way_out(streams, place, sizes, returned))
    return sorted((item for item in found if item is not None), key=lambda item: item.anchor)


def _bridges(ancestry: Ancestry, passages: Sequence[Passage]) -> tuple[Bridge, ...]:
    """Put the crossings of one direction and size together, attentions between streams apart."""
    grouped: dict[tuple[object, ...], list[Passage]] = {}
    for item in passages:
        alone = item.anchor if item.between_streams else None
        grouped.setdefault((item.direction, item.size, alone), []).append(item)
    return tuple(_bridge(ancestry, group) for group in grouped.values())


def _bridge(ancestry: Ancestry, group: Sequence[Passage]) -> Bridge:
    first, final = union(item.first for item in group), union(item.final for item in group)
    begin = members(first or final)
    ends = (ancestry.nodes[ancestry.with_bias(place)] for place in members(final))
    return Bridge(
        direction=str(group[0].direction),
        size=group[0].size,
        nodes=tuple(ancestry.nodes[at].name for at in members(union(p.nodes for p in group))),
        inputs=tuple(dict.fromkeys(t.name for at in begin for t in ancestry.inputs[at])),
        outputs=tuple(dict.fromkeys(t.name for node in ends for t in node.outputs)),
        why=_why(ancestry, group),
    )


def _why(ancestry: Ancestry, group: Sequence[Passage]) -> str:
    """Return one line: at which size, what crosses, and at which node first."""
    head = group[0]
    told = TELLING[head.direction, head.between_streams]
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    return f"{head.size}: {told} at {ancestry.nodes[head.anchor].name}{more}"


def _note(anchors: Anchors, passages: Sequence[Passage]) -> str:
    if not passages:
        return f"no bridges: {_absence(anchors)}"
    regional = {(item.direction, item.size) for item in passages if not item.between_streams}
    sides = Counter(direction for direction, _ in regional)
    streams = Counter(item.direction for item in passages if item.between_streams)
    told = []
    if regional:
        ins, outs = sides[Crossing.IN], sides[Crossing.OUT]
        told.append(f"bridges: {ins} into global regions, {outs} out of them")
    if streams:
        told.append(f"cross attentions: {streams[Crossing.IN]} in, {streams[Crossing.OUT]} out")
    return "; ".join(told)


def _absence(anchors: Anchors) -> str:
    if not anchors.all:
        return "nothing mixes positions"
    if not anchors.everywhere:
        return "a pure convolutional net"
    return "no local region" if not anchors.local else "local and global regions do not meet"
