# SPDX-License-Identifier: Apache-2.0
"""The graph by regions: which node lies where, what flows between, how much work is done."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from qhyvit_onnx.facts import Region
from qhyvit_onnx.graph import Graph, Node
from qhyvit_onnx.work import Shapes, multiply_adds, total

Link: TypeAlias = tuple[int, int]
"""Places of two regions, from and to."""


@dataclass(frozen=True, slots=True, eq=False)
class Map:
    """The graph with its regions, and what is known of its tensors."""

    graph: Graph
    regions: tuple[Region, ...]
    home: Mapping[str, int]
    """Place of the region of every node, by name."""
    shapes: Shapes
    channels: Mapping[str, int]
    """Channel axis by tensor name."""

    @classmethod
    def of(
        cls,
        graph: Graph,
        regions: tuple[Region, ...],
        shapes: Shapes,
        channels: Mapping[str, int],
    ) -> "Map":
        """Return the map of ``graph``."""
        home = {name: at for at, region in enumerate(regions) for name in region.nodes}
        return cls(graph, regions, home, shapes, channels)

    def nodes(self, names: Sequence[str]) -> list[Node]:
        """Return the nodes called ``names``."""
        known = {node.name: node for node in self.graph.nodes}
        return [known[name] for name in names]

    def edges(self, nodes: Iterable[Node]) -> Iterator[tuple[Node, Node]]:
        """Yield (writer, reader) for every tensor that one of ``nodes`` reads."""
        for node in nodes:
            for writer in (writer for tensor in node.inputs for writer in tensor.inputs):
                if writer.name in self.home and node.name in self.home:
                    yield writer, node

    def link(self, writer: Node, reader: Node) -> Link:
        """Return the regions of two nodes."""
        return self.home[writer.name], self.home[reader.name]

    def flows(self) -> tuple[Link, ...]:
        """Return every pair of regions of which the second reads what the first writes."""
        links = {self.link(*edge) for edge in self.edges(self.graph.nodes)}
        return tuple(sorted(link for link in links if link[0] != link[1]))

    def work(self, nodes: Iterable[Node]) -> int | None:
        """Return the multiply-adds of ``nodes``."""
        return total(multiply_adds(node, self.shapes) for node in nodes)

    def region_of_tensors(self) -> dict[str, int]:
        """Return the region that computes each tensor; for an input, the first that reads it."""
        found: dict[str, int] = {}
        for node in self.graph.nodes:
            if node.name in self.home:
                for tensor in (*node.outputs, *node.inputs):
                    found.setdefault(tensor.name, self.home[node.name])
        return found
