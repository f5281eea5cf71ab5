# SPDX-License-Identifier: Apache-2.0
"""Chains of data movement, from a computed tensor to one that something computes with."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import onnx

from qhyvit_onnx.graph import Graph, Node, Tensor, is_absent, is_output
from qhyvit_onnx.layout.channels import channel_axes
from qhyvit_onnx.layout.index_map import IndexMap
from qhyvit_onnx.layout.moves import Move, moves_of
from qhyvit_onnx.layout.roles import Role, RoleKind
from qhyvit_onnx.pattern import Miss
from qhyvit_onnx.symbolic.shapes import Knowledge, infer

LARGEST = 10_000
"""Chains that are listed; a graph of densely nested Concats has too many paths to follow all."""

_NUMBERS = frozenset({
    onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
})  # fmt: skip
_SHAPE_ONLY = frozenset({"Shape", "Size"})
"""Ops that read no element."""


@dataclass(frozen=True, slots=True)
class Chain:
    """One path of movement from a computed tensor to one that something computes with."""

    source: str
    """Tensor, written by a node that moves nothing or whose move has no map."""
    end: str
    """Tensor, read by such a node or an output of the graph."""
    nodes: tuple[str, ...]
    map: IndexMap
    channel: Role
    """Where the channel axis of ``source`` went; MIXED without axes if ``source`` has none that
    can be said."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything known of how activations are laid out."""

    known: Knowledge
    moves: Mapping[str, tuple[Move, ...]]
    """By node name: every movement node on floating-point data that has a map."""
    chains: tuple[Chain, ...]
    unknown: tuple[str, ...] = ()
    """Tensors whose shape is not known."""
    observed: tuple[str, ...] = ()
    """Tensors whose shape is what one sample showed, not what follows from the graph."""
    misses: Mapping[str, int] = field(default_factory=dict)
    """Movement without a map, and what was left out: times by reason."""


def analyse(graph: Graph, known: Knowledge | None = None, observed: tuple[str, ...] = ()) -> Layout:
    """Return the layout of ``graph``, which is sorted and not changed.

    ``known`` saves inferring the shapes again; ``observed`` names those that were only seen.
    """
    known = infer(graph) if known is None else known
    moves, misses = _all_moves(graph, known)
    walk = _Walk(graph, moves, channel_axes(graph, known, moves))
    chains = tuple(islice(walk.chains(), LARGEST + 1))
    if len(chains) > LARGEST:
        chains = chains[:LARGEST]
        misses[f"chains after the first {LARGEST} not followed"] += 1
    return Layout(known, moves, chains, unknown_shapes(graph, known), observed, dict(misses))


def unknown_shapes(graph: Graph, known: Knowledge) -> tuple[str, ...]:
    """Return the names of computed tensors without a known shape, in topological order."""
    outputs = (tensor for node in graph.nodes for tensor in node.outputs if not is_absent(tensor))
    return tuple(tensor.name for tensor in outputs if tensor.name not in known.shapes)


def _all_moves(graph: Graph, known: Knowledge) -> tuple[dict[str, tuple[Move, ...]], Counter[str]]:
    """Map every movement of floating-point data; shape arithmetic moves integers, left out."""
    moves: dict[str, tuple[Move, ...]] = {}
    misses: Counter[str] = Counter()
    for node in graph.nodes:
        if not any(known.elems.get(tensor.name) in _NUMBERS for tensor in node.outputs):
            continue
        found = moves_of(node, known)
        if isinstance(found, Miss):
            misses[found.reason] += 1
        elif found:
            moves[node.name] = found
    return moves, misses


class _Walk:
    """Follows movement downwards from every computed tensor."""

    def __init__(
        self, graph: Graph, moves: Mapping[str, tuple[Move, ...]], channels: Mapping[str, int]
    ) -> None:
        self._graph, self._moves, self._channels = graph, moves, channels
        self._mapped = {id(node) for node in graph.nodes if node.name in moves}

    def chains(self) -> Iterator[Chain]:
        for node in self._graph.nodes:
            if id(node) not in self._mapped:
                for tensor in node.outputs:
                    yield from self._from(tensor, tensor, (), None)

    def _from(
        self, source: Tensor, tensor: Tensor, nodes: tuple[str, ...], so_far: IndexMap | None
    ) -> Iterator[Chain]:
        """Yield the chains from ``source`` that go through ``tensor`` or end there."""
        if so_far is not None and self._is_read(tensor):
            yield self._chain(source, tensor, nodes, so_far)
        for node in _distinct(tensor.outputs):
            if id(node) not in self._mapped:
                continue
            for move in self._moves[node.name]:
                if move.input != tensor.name:
                    continue
                map_ = move.map if so_far is None else so_far.then(move.map)
                if not map_.is_empty:
                    out = next(out for out in node.outputs if out.name == move.output)
                    yield from self._from(source, out, (*nodes, node.name), map_)

    def _is_read(self, tensor: Tensor) -> bool:
        """Tell whether something computes with ``tensor``, or the user gets it."""
        if is_output(self._graph, tensor):
            return True
        return any(
            id(node) not in self._mapped and node.op not in _SHAPE_ONLY for node in tensor.outputs
        )

    def _chain(self, source: Tensor, end: Tensor, nodes: tuple[str, ...], found: IndexMap) -> Chain:
        axis = self._channels.get(source.name)
        channel = Role(RoleKind.MIXED) if axis is None else found.role(axis)
        return Chain(source.name, end.name, nodes, found, channel)


def _distinct(nodes: list[Node]) -> Iterator[Node]:
    """Yield each node once: one that reads a tensor twice is listed twice."""
    seen: set[int] = set()
    for node in nodes:
        if id(node) not in seen:
            seen.add(id(node))
            yield node
