# SPDX-License-Identifier: Apache-2.0
"""Regions: stretches of a network that mix on one side at one size."""

from collections.abc import Sequence
from typing import TypeAlias

from qhyvit_onnx.facts import Region, Side
from qhyvit_onnx.passes._bridges.ancestry import last, members
from qhyvit_onnx.passes._bridges.attentions import Crossing
from qhyvit_onnx.passes._bridges.passage import Passage
from qhyvit_onnx.passes._bridges.sizes import UNKNOWN, Sizes, shown
from qhyvit_onnx.passes._bridges.streams import Streams

Key: TypeAlias = tuple[Side, str]


def find_regions(streams: Streams, sizes: Sizes, passages: Sequence[Passage]) -> tuple[Region, ...]:
    """Return every region, in the order in which data reaches them; none without an anchor.

    An anchor is on its own side, any other node on the side it feeds, after the last anchor on the
    side that fed it. Up to the last layers before a crossing, though, nodes stay on the side they
    come from: a bridge begins with the end of one region and ends with the begin of the next. A
    region counts how often side or size changed on the way to it, so that what runs side by side
    stays together however the nodes were written down.
    """
    if not streams.anchors.all:
        return ()
    nodes, keys = streams.ancestry.nodes, _keys(streams, sizes, passages)
    steps = _steps(streams, keys)
    found: dict[tuple[int, Key], list[str]] = {}
    for place in sorted(range(len(nodes)), key=lambda place: steps[place]):
        found.setdefault((steps[place], keys[place]), []).append(nodes[place].name)
    return tuple(Region(side, size, tuple(names)) for (_, (side, size)), names in found.items())


def _keys(streams: Streams, sizes: Sizes, passages: Sequence[Passage]) -> list[Key]:
    """Return side and size of every node; what has none of its own takes its first reader's."""
    ancestry, sides = streams.ancestry, _sides(streams)
    for passage in passages:
        _keep(streams, passage, sides)
    _settle(streams, sides)
    final = streams.anchors.everywhere >> last(streams.anchors.all) & 1
    keys: list[Key] = [(Side.GLOBAL if final else Side.LOCAL, UNKNOWN)] * len(sides)
    for place in reversed(range(len(sides))):
        users = ancestry.users(place)
        given_side, given_size = keys[users[0]] if users else keys[place]
        size = sizes.of(ancestry.nodes[place].outputs[0]) if ancestry.inputs[place] else None
        keys[place] = (sides[place] or given_side, given_size if size is None else shown(size))
    return keys


def _keep(streams: Streams, passage: Passage, sides: list[Side | None]) -> None:
    """Put what leads from the last anchors to a crossing on the side of these anchors."""
    ancestry, anchors = streams.ancestry, streams.anchors
    side, own = Side.GLOBAL, anchors.everywhere
    if passage.direction is Crossing.IN:
        side, own = Side.LOCAL, anchors.local
    for layer in members(passage.first & ~anchors.all):
        kept = 1 << ancestry.with_bias(layer)
        for tensor in streams.carried[layer]:
            for anchor in members(streams.latest(tensor) & own):
                kept |= ancestry.between(anchor, layer, avoid=anchors.all)
        for place in members(kept & ~anchors.all):
            sides[place] = side


def _settle(streams: Streams, sides: list[Side | None]) -> None:
    """Let a node that the other side surrounds go over to it."""
    ancestry = streams.ancestry
    for place in range(len(sides)):
        around = {sides[near] for near in (*ancestry.readers[place], *ancestry.sources(place))}
        if len(around) == 1 and not streams.anchors.all >> place & 1:
            sides[place] = around.pop()


def _sides(streams: Streams) -> list[Side | None]:
    """Return the side of every node, None where no anchor is above or below."""
    ancestry, anchors = streams.ancestry, streams.anchors
    sides: list[Side | None] = [None] * len(ancestry.nodes)
    feeds = [0] * len(ancestry.nodes)
    for place in reversed(range(len(ancestry.nodes))):
        for anchor in members(feeds[place]):
            feeds[place] &= ~ancestry.below[anchor] | 1 << anchor  # the nearest ones only
        own = 1 << place & anchors.all
        for tensor in streams.carried[place]:
            if (source := ancestry.source(tensor)) >= 0:
                feeds[source] |= own or feeds[place]
        if near := own or feeds[place] or _last_bit(ancestry.above[place] & anchors.all):
            sides[place] = Side.LOCAL if near & anchors.local else Side.GLOBAL
    return sides


def _last_bit(bits: int) -> int:
    return 1 << last(bits) if bits else 0


def _steps(streams: Streams, keys: Sequence[Key]) -> list[int]:
    """Return how often the key changed on the longest way to every node."""
    ancestry = streams.ancestry
    steps = [0] * len(keys)
    for place in range(len(keys)):
        for source in ancestry.sources(place):
            steps[place] = max(steps[place], steps[source] + (keys[source] != keys[place]))
    for place in reversed(range(len(keys))):
        users = ancestry.users(place)
        if not ancestry.inputs[place] and users:  # a steady node goes with what reads it
            steps[place] = steps[users[0]]
    return steps
