# SPDX-License-Identifier: Apache-2.0
"""Which norms a graph has, and where their scale and offset went: read from the graphs themselves.

A norm's scale and offset are seen at three times: at first, once everything was folded into the
layer before it that can be, and at the end. Where they disappear is where they were folded.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qhyvit_onnx.composites import Composite, find_composites
from qhyvit_onnx.graph import Graph, Node, is_constant, operand, producer, value
from qhyvit_onnx.inspection.records import NormView

OPS = frozenset({
    "BatchNormalization", "LayerNormalization", "GroupNormalization", "InstanceNormalization",
})  # fmt: skip
SPELLED = frozenset({"LayerNorm", "GroupNorm1"})
"""Norms written as several ops."""
SCALING = frozenset({"Mul", "Add", "Sub", "Div"})
CONSTANT = "constant scale or offset"
"""Shown as a kind of norm: layer scale, the input's mean and deviation. Only those that were folded
are counted; one that no layer takes over stays an op like any other."""

KEPT: Mapping[str, str] = {
    "GroupNormalization": "scale and offset of this op are not folded",
    "InstanceNormalization": "scale and offset of this op are not folded",
    "LayerNorm": "spelled out, and left so that it runs as one op",
    "GroupNorm1": "no layer around takes them over",
}
"""Why scale and offset stay, for kinds of which no pass tells."""


@dataclass(frozen=True, slots=True)
class Norm:
    """One norm, or one constant scale or offset."""

    kind: str
    holders: tuple[str, ...]
    """Names of the nodes that hold scale and offset; none when there are none."""
    output: str


def find_norms(graph: Graph) -> list[Norm]:
    """Return every norm of ``graph``, and every constant scale or offset outside of norms."""
    composites = find_composites(graph)
    spelled = [item for item in composites if item.kind in SPELLED]
    inside = {id(node) for item in composites for node in item.nodes}
    found = [_spelled(item) for item in spelled]
    for node in graph.nodes:
        if node.op in OPS and id(node) not in inside:
            found.append(Norm(node.op, (node.name,) * _scales(node), node.outputs[0].name))
        elif node.op in SCALING and id(node) not in inside and _by_constant(node):
            found.append(Norm(CONSTANT, (node.name,), node.outputs[0].name))
    return found


def norm_views(
    norms: Sequence[Norm], backward: Graph, final: Graph, misses: Mapping[str, int]
) -> tuple[NormView, ...]:
    """Return what became of ``norms``, by kind.

    ``backward`` is the graph once what can be was folded into layers before, ``final`` once the
    rest was folded into layers after; ``misses`` are the pass's, ``kind: reason`` to times.
    """
    first, last = ([_holds(norm, graph) for norm in norms] for graph in _indexed(backward, final))
    fates: dict[str, Counter[str]] = {}
    for norm, after_first, after_last in zip(norms, first, last, strict=True):
        fate = _fate(norm, after_first=after_first, after_last=after_last)
        fates.setdefault(norm.kind, Counter())[fate] += 1
    return tuple(_views(fates, misses))


def _fate(norm: Norm, *, after_first: bool, after_last: bool) -> str:
    if not norm.holders:
        return "bare"
    if after_last:
        return "left"
    return "after" if after_first else "before"


def _views(fates: Mapping[str, Counter[str]], misses: Mapping[str, int]) -> Iterator[NormView]:
    for kind in sorted(fates, key=lambda kind: kind == CONSTANT):
        counts, reasons = fates[kind], dict[str, int]()
        if kind == CONSTANT:
            del counts["left"]
        if counts["left"]:
            mark = f"{kind}: "
            told = {key.removeprefix(mark): n for key, n in misses.items() if key.startswith(mark)}
            reasons = told or {KEPT[kind]: counts["left"]} if kind in KEPT else told
        if counts.total():
            yield NormView(
                kind=kind,
                count=counts.total(),
                **{fate: counts[fate] for fate in ("before", "after", "bare", "left")},
                reasons=reasons,
            )


@dataclass(frozen=True, slots=True)
class _Index:
    """A graph by name."""

    nodes: Mapping[str, Node]
    writers: Mapping[str, Node]


def _indexed(*graphs: Graph) -> Iterator[_Index]:
    for graph in graphs:
        nodes = {node.name: node for node in graph.nodes}
        writers = {tensor.name: node for node in graph.nodes for tensor in node.outputs}
        yield _Index(nodes, writers)


def _holds(norm: Norm, graph: _Index) -> bool:
    """Tell whether the scale and offset of ``norm`` are still where it was."""
    if norm.kind == "BatchNormalization" and norm.holders[0] not in graph.nodes:
        writer = graph.writers.get(norm.output)  # an Add, where it was written as Mul and Add
        return writer is not None and writer.op == "Add" and _by_constant(writer)
    there = [graph.nodes[name] for name in norm.holders if name in graph.nodes]
    return any(node.op not in OPS or _scales(node) for node in there)


def _spelled(item: Composite) -> Norm:
    constants = [item.bound[name] for name in ("gamma", "beta") if name in item.bound]
    holders = [
        node.name
        for node in item.nodes
        if any(tensor is held for tensor in node.inputs for held in constants)
    ]
    return Norm(item.kind, tuple(holders), item.output.name)


def _scales(node: Node) -> bool:
    """Tell whether a norm written as one op has a scale or offset other than one and zero."""
    if node.op == "BatchNormalization":
        return True  # what it does is a scale and an offset
    arrays = [None if t is None else value(t) for t in (operand(node, 1), operand(node, 2))]
    computed = any(operand(node, at) is not None and arrays[at - 1] is None for at in (1, 2))
    scale, offset = arrays
    one = scale is None or bool(np.all(scale == 1.0))
    return computed or not one or (offset is not None and bool(np.any(offset)))


def _by_constant(node: Node) -> bool:
    """Tell whether one operand is constant, and the other is not the product of a MatMul.

    An Add behind a MatMul is its bias.
    """
    held = [is_constant(tensor) for tensor in node.inputs]
    if sum(held) != 1 or len(held) != 2:
        return False
    above = producer(node.inputs[held.index(False)])
    return not (node.op == "Add" and above is not None and above.op == "MatMul")
