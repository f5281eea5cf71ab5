# SPDX-License-Identifier: Apache-2.0
"""Which regions every bridge joins, and how much is done on it."""

from collections.abc import Sequence

from qhyvit_onnx.facts import Bridge, Side
from qhyvit_onnx.graph import MOVEMENT, Node
from qhyvit_onnx.inspection.map import Link, Map
from qhyvit_onnx.inspection.records import BridgeView
from qhyvit_onnx.work import is_layer


def bridge_views(seen: Map, bridges: tuple[Bridge, ...]) -> tuple[BridgeView, ...]:
    """Return every bridge with the regions that it joins."""
    return tuple(_bridge(seen, bridge, seen.nodes(bridge.nodes)) for bridge in bridges)


def _bridge(seen: Map, bridge: Bridge, nodes: Sequence[Node]) -> BridgeView:
    return BridgeView(
        direction=bridge.direction,
        size=bridge.size,
        why=bridge.why,
        nodes=bridge.nodes,
        inputs=bridge.inputs,
        outputs=bridge.outputs,
        crosses=tuple(sorted(_crosses(seen, bridge, nodes))),
        layers=sum(map(is_layer, nodes)),
        macs=seen.work(nodes),
    )


def _crosses(seen: Map, bridge: Bridge, nodes: Sequence[Node]) -> set[Link]:
    """Return where a bridge goes over.

    That is inside of it, from its side to the other if possible. An attention between streams may
    lie in one region up to the product with the other stream: then it goes to where what it writes
    is computed with, if that is another region.
    """
    names = {node.name for node in nodes}
    inside = {seen.link(a, b) for a, b in seen.edges(nodes) if a.name in names}
    inside = {link for link in inside if link[0] != link[1]}
    begin = Side.LOCAL if bridge.direction == "in" else Side.GLOBAL
    sides = [region.side is begin for region in seen.regions]
    over = {(a, b) for a, b in inside if sides[a] and not sides[b]}
    return over or inside or _beyond(seen, nodes) or {seen.link(node, node) for node in nodes}


def _beyond(seen: Map, nodes: Sequence[Node]) -> set[Link]:
    """Return the pairs of regions joined by what reads ``nodes``, seen through data movement."""
    here = {seen.home[node.name] for node in nodes}
    links: set[Link] = set()
    ahead, met = list(nodes), set[str]()
    while ahead:
        node = ahead.pop()
        for reader in (reader for tensor in node.outputs for reader in tensor.outputs):
            if reader.name not in seen.home or reader.name in met:
                continue
            met.add(reader.name)
            if seen.home[reader.name] not in here:
                links.add(seen.link(node, reader))
            elif reader.op in MOVEMENT:
                ahead.append(reader)
    return links
