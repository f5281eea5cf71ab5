# SPDX-License-Identifier: Apache-2.0
"""Walks up a stream to the layers that feed it."""

from collections.abc import Callable
from typing import TypeAlias

from qhyvit_onnx.graph import Tensor
from qhyvit_onnx.passes._bridges.ancestry import last
from qhyvit_onnx.passes._bridges.streams import Streams

Test: TypeAlias = Callable[[Tensor], bool]
"""Whether an activation belongs to the stream that is followed."""

JOINS = frozenset({"Add", "Sub", "Sum", "Mean", "Mul", "Div", "Max", "Min"})
"""Elementwise ops of two streams: only one is followed. A Concat keeps its parts apart."""


def ways_up(streams: Streams, place: int, test: Test) -> list[Tensor]:
    """Return the activations of a node that lead on up the stream.

    At a join that is the one with the newest layer: the branch of a residual block, not its skip.
    """
    found = [tensor for tensor in streams.carried[place] if test(tensor)] or streams.carried[place]
    if len(found) < 2 or streams.ancestry.nodes[place].op not in JOINS:
        return found
    ancestry = streams.ancestry
    return [max(found, key=lambda t: (last(ancestry.up(t) & ancestry.layers), ancestry.source(t)))]


def nearest_layers(streams: Streams, tensor: Tensor, test: Test) -> list[int]:
    """Return the nearest layers or global products at or above ``tensor``, in topological order."""
    ancestry = streams.ancestry
    stops = ancestry.layers | streams.anchors.everywhere
    found, seen, queue = 0, 0, [ancestry.source(tensor)]
    for place in queue:
        if place < 0 or seen >> place & 1:
            continue
        seen |= 1 << place
        if stops >> place & 1:
            found |= 1 << place
        else:
            queue.extend(map(ancestry.source, ways_up(streams, place, test)))
    return [place for place in sorted(queue) if place >= 0 and found >> place & 1]
