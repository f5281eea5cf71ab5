# SPDX-License-Identifier: Apache-2.0
"""Patterns as data: match a small tree of nodes, and say why when it does not match."""

from dataclasses import dataclass
from typing import TypeAlias

from qhyvit_onnx.graph import Graph, Node, Tensor, producer, scalar, uses

Match: TypeAlias = dict[str, Node | Tensor]


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a pattern stopped, and at which node."""

    reason: str
    node: str = ""


@dataclass(frozen=True, slots=True)
class AnyTensor:
    """Any tensor; the same ``bind`` twice must be the same tensor."""

    bind: str


@dataclass(frozen=True, slots=True)
class Number:
    """A one-element initializer close to ``value``; ``value`` None takes any and binds it."""

    value: float | None = None
    bind: str = ""
    tolerance: float = 1e-3


@dataclass(frozen=True, slots=True)
class Op:
    """A node of type ``kind``.

    ``inputs`` match its leading inputs (None: free); with ``either`` the first two may be swapped.
    Every matched node below the root must have its consumer as sole use, unless ``shared``.
    """

    kind: str
    inputs: "tuple[Pattern | None, ...]" = ()
    bind: str = ""
    either: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True)
class OneOf:
    """The first of several ways to write the same thing that matches here; no going back later."""

    ways: "tuple[Pattern, ...]"


Pattern: TypeAlias = Op | AnyTensor | Number | OneOf


def match(pattern: Op, node: Node, graph: Graph) -> Match | Miss:
    """Match ``pattern`` with its root at ``node``.

    Returns:
        Bound nodes and tensors by name, or the reason the walk stopped. Never a partial match.

    """
    return _match_node(pattern, node, graph, {})


def _match_node(pattern: Op, node: Node, graph: Graph, bound: Match) -> Match | Miss:
    if node.op != pattern.kind:
        return Miss(f"want {pattern.kind}, found {node.op}", node.name)
    if pattern.bind:
        bound = bound | {pattern.bind: node}
    result = _match_inputs(pattern.inputs, node, graph, bound)
    if isinstance(result, Miss) and pattern.either:
        swapped = (pattern.inputs[1], pattern.inputs[0], *pattern.inputs[2:])
        second = _match_inputs(swapped, node, graph, bound)
        return result if isinstance(second, Miss) else second
    return result


def _match_inputs(
    wanted: "tuple[Pattern | None, ...]", node: Node, graph: Graph, bound: Match
) -> Match | Miss:
    for index, want in enumerate(wanted):
        if want is None:
            continue
        if index >= len(node.inputs):
            return Miss(f"{node.op} has no input {index}", node.name)
        below = _match_tensor(want, node.inputs[index], graph, bound)
        if isinstance(below, Miss):
            return below
        bound = below
    return bound


def _match_tensor(want: Pattern, tensor: Tensor, graph: Graph, bound: Match) -> Match | Miss:
    if isinstance(want, AnyTensor):
        same = bound.get(want.bind, tensor) is tensor
        other = Miss(f"{want.bind} is another tensor here", tensor.name)
        return bound | {want.bind: tensor} if same else other
    if isinstance(want, Number):
        return _match_number(want, tensor, bound)
    if isinstance(want, OneOf):
        return _match_ways(want, tensor, graph, bound)
    node = producer(tensor)
    if node is None:
        return Miss(f"want {want.kind}, found an input or a constant", tensor.name)
    if not want.shared and uses(graph, tensor) != 1:
        return Miss(f"{want.kind} output has {uses(graph, tensor)} uses", node.name)
    return _match_node(want, node, graph, bound)


def _match_ways(want: OneOf, tensor: Tensor, graph: Graph, bound: Match) -> Match | Miss:
    """Return the first way that matches, or why the first way does not."""
    results = (_match_tensor(way, tensor, graph, bound) for way in want.ways)
    first = next(results)
    if not isinstance(first, Miss):
        return first
    return next((found for found in results if not isinstance(found, Miss)), first)


def _match_number(want: Number, tensor: Tensor, bound: Match) -> Match | Miss:
    found = scalar(tensor)
    if found is None:
        return Miss("want a constant number", tensor.name)
    if want.value is not None and abs(found - want.value) > want.tolerance * max(
        abs(want.value), 1e-9
    ):
        return Miss(f"want {want.value}, found {found:g}", tensor.name)
    return bound | {want.bind: tensor} if want.bind else bound
