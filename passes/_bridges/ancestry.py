# SPDX-License-Identifier: Apache-2.0
"""Who is above whom in a graph: ancestors and descendants as bit sets.

A set of nodes is a Python int, bit ``i`` for node ``i`` in topological order: unions and
intersections over a thousand nodes cost next to nothing. Only activations count as edges: what
does not depend on the values of the graph's inputs (weights, shapes, position embeddings) is
*steady* and connects nothing.
"""

from collections.abc import Iterable, Iterator
from functools import reduce
from operator import or_

from qhyvit_onnx.graph import LINEAR, Graph, Node, Tensor, producer

SHAPES = frozenset({"Shape", "Size"})
"""Ops that read no values."""


def members(bits: int) -> Iterator[int]:
    """Yield the nodes of a set, first to last."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def union(sets: Iterable[int]) -> int:
    """Return the nodes that are in any of ``sets``."""
    return reduce(or_, sets, 0)


def last(bits: int) -> int:
    """Return the last node of a set, -1 when it is empty."""
    return bits.bit_length() - 1


class Ancestry:
    """The nodes of one sorted graph and the paths of activations between them."""

    def __init__(self, graph: Graph) -> None:
        """Walk ``graph`` once down and once up; it is not changed."""
        self.nodes: list[Node] = list(graph.nodes)
        self._places = {id(node): place for place, node in enumerate(self.nodes)}
        outputs = {id(tensor) for tensor in graph.outputs}
        self.public = [any(id(t) in outputs for t in node.outputs) for node in self.nodes]
        """By node: whether it writes an output of the graph."""
        self._varying = {id(tensor) for tensor in graph.inputs}
        self.inputs = [self._activations(node) for node in self.nodes]
        """By node: the activations it reads."""
        self.readers: list[list[int]] = [[] for _ in self.nodes]
        """By node: the nodes that read an activation it writes."""
        self.above = [1 << place for place in range(len(self.nodes))]
        """By node: every node above it, and itself."""
        self._look_up()
        self.below = [1 << place for place in range(len(self.nodes))]
        """By node: every node below it, and itself."""
        self.meets = list(self.below)
        """By node: the nodes, itself too, that every path from it to an output goes through."""
        self._look_down()
        self.layers = union(1 << at for at in range(len(self.nodes)) if self._is_layer(at))
        """Layers: products with a weight, of Conv, ConvTranspose, Gemm, MatMul and Einsum."""

    def _activations(self, node: Node) -> list[Tensor]:
        found = [tensor for tensor in node.inputs if id(tensor) in self._varying]
        nested = any(hasattr(item, "nodes") for item in node.attrs.values())  # may read anything
        if node.op not in SHAPES and (found or nested):
            self._varying.update(map(id, node.outputs))
        return found if node.op not in SHAPES else []

    def _look_up(self) -> None:
        for place in range(len(self.nodes)):
            for source in set(self.sources(place)):
                self.above[place] |= self.above[source]
                self.readers[source].append(place)

    def _look_down(self) -> None:
        for place in reversed(range(len(self.nodes))):
            common = 0 if self.public[place] or not self.readers[place] else -1
            for reader in self.readers[place]:
                self.below[place] |= self.below[reader]
                common &= self.meets[reader]
            self.meets[place] |= common

    def _is_layer(self, place: int) -> bool:
        node = self.nodes[place]
        if node.op in {"Conv", "ConvTranspose"}:
            return bool(self.inputs[place])
        factors = node.inputs if node.op == "Einsum" else node.inputs[:2]
        if node.op not in LINEAR | {"Einsum"} or sum(map(self.varies, factors)) != 1:
            return False
        steady = next(tensor for tensor in factors if not self.varies(tensor))
        stack = node.op == "MatMul" and steady.shape is not None and len(steady.shape) > 2
        return not stack  # a matrix per head: the constant query of an attention

    def varies(self, tensor: Tensor) -> bool:
        """Tell whether ``tensor`` is an activation: its values depend on the graph's inputs."""
        return id(tensor) in self._varying

    def source(self, tensor: Tensor) -> int:
        """Return the node that writes ``tensor``, -1 for inputs and constants."""
        node = producer(tensor)
        return -1 if node is None else self._places[id(node)]

    def sources(self, place: int) -> list[int]:
        """Return the nodes that write the activations ``place`` reads."""
        return [found for found in map(self.source, self.inputs[place]) if found >= 0]

    def users(self, place: int) -> list[int]:
        """Return every node of the graph that reads what ``place`` writes, steady or not."""
        readers = (node for tensor in self.nodes[place].outputs for node in tensor.outputs)
        return sorted({found for node in readers if (found := self._places.get(id(node), -1)) >= 0})

    def up(self, tensor: Tensor) -> int:
        """Return every node that ``tensor`` depends on."""
        source = self.source(tensor)
        return self.above[source] if source >= 0 else 0

    def between(self, first: int, final: int, avoid: int = 0) -> int:
        """Return every node on a path from ``first`` to ``final``, both included.

        Paths through a node of ``avoid`` do not count, except for the two ends.
        """
        free = self.below[first] & self.above[final] & ~avoid | 1 << first | 1 << final
        reaching = 1 << final
        for place in reversed(list(members(free))):
            if any(reaching >> reader & 1 for reader in self.readers[place]):
                reaching |= 1 << place
        found = 1 << first & reaching
        for place in members(reaching):
            if any(found >> source & 1 for source in self.sources(place)):
                found |= 1 << place
        return found

    def with_bias(self, place: int) -> int:
        """Return the node that ends a layer: the Add of its bias when it stands apart."""
        readers = self.readers[place]
        if len(readers) != 1 or not self.layers >> place & 1:
            return place
        alone = self.nodes[readers[0]].op == "Add" and len(self.inputs[readers[0]]) == 1
        return readers[0] if alone else place
