# SPDX-License-Identifier: Apache-2.0
"""Functions that exporters spell out in several nodes, found again.

Knowledge, not rewriting: ONNX below opset 20 has no Gelu, and no opset has SiLU before 24, so these
stay decomposed in the file. onnxruntime fuses most of them at load, as long as nothing is put
between their nodes; whoever places Q/DQ must know where they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from qhyvit_onnx.graph import (
    Graph,
    Node,
    Tensor,
    axes_of,
    is_constant,
    is_output,
    operand,
    producer,
    sole_consumer,
)
from qhyvit_onnx.pattern import AnyTensor, Match, Miss, Number, OneOf, Op, Pattern, match


@dataclass(frozen=True, slots=True, eq=False)
class Composite:
    """One function of one tensor, written as several nodes that nothing else reads."""

    kind: str
    nodes: tuple[Node, ...]
    """In topological order; the last one computes ``output``."""
    input: Tensor
    output: Tensor
    bound: Match
    """What the pattern of this kind names: ``eps``, ``gamma``, ``mean`` ..."""


X = AnyTensor("x")


def _commuting(kind: str, first: Pattern, second: Pattern) -> Op:
    return Op(kind, (first, second), either=True)


def _scaled(scale: float, body: Pattern) -> tuple[Op, ...]:
    """Return the ways to write x * body * scale."""
    by, divisor = Number(scale), Number(1 / scale)
    product = _commuting("Mul", X, body)
    return (
        _commuting("Mul", product, by),
        Op("Div", (product, divisor)),
        _commuting("Mul", X, _commuting("Mul", body, by)),
        _commuting("Mul", X, Op("Div", (body, divisor))),
        _commuting("Mul", body, _commuting("Mul", X, by)),
        _commuting("Mul", body, Op("Div", (X, divisor))),
    )


def _cast(pattern: Pattern) -> OneOf:
    """Return ``pattern``, with or without a Cast on it."""
    return OneOf((pattern, Op("Cast", (pattern,), shared=True)))


_SQRT2 = 2**0.5
_ERF = Op(
    "Erf", (OneOf((Op("Div", (X, Number(_SQRT2))), _commuting("Mul", X, Number(1 / _SQRT2)))),)
)

_SHIFTED = _commuting("Add", X, Number(3.0))
_GATE = OneOf((
    Op("Clip", (_SHIFTED, Number(0.0), Number(6.0))),
    _commuting("Min", Op("Relu", (_SHIFTED,)), Number(6.0)),
    Op("Clip", (Op("Relu", (_SHIFTED,)), None, Number(6.0))),
))  # fmt: skip
_HARD_SIGMOID = Op("HardSigmoid", (X,), bind="gate")

_MEAN = Op("ReduceMean", (_cast(X),), bind="mean", shared=True)
_CENTRED = Op("Sub", (_cast(X), _cast(_MEAN)), bind="centred", shared=True)
_SQUARE = OneOf((
    Op("Pow", (_cast(_CENTRED), Number(2.0))),
    Op("Mul", (_cast(_CENTRED), _cast(_CENTRED))),
))  # fmt: skip
_VARIANCE = Op("ReduceMean", (_cast(_SQUARE),), bind="variance")
_SPREAD = _commuting("Add", _cast(_VARIANCE), Number(bind="eps"))
_DEVIATION = OneOf((Op("Sqrt", (_cast(_SPREAD),)), Op("Pow", (_cast(_SPREAD), Number(0.5)))))
_INVERSE = OneOf((
    Op("Reciprocal", (_DEVIATION,)),
    Op("Div", (Number(1.0), _DEVIATION)),
    Op("Pow", (_SPREAD, Number(-0.5))),
))  # fmt: skip

_PEAK = Op("ReduceMax", (X,), bind="peak")
_EXP = OneOf((
    Op("Exp", (Op("Sub", (X, _PEAK), bind="centred"),), shared=True),
    Op("Exp", (X,), shared=True),
))  # fmt: skip

_INSTANCE = Op("InstanceNormalization", (Op("Reshape", (X,), bind="grouped"),), bind="norm")

RECIPES: tuple[tuple[str, tuple[Op, ...]], ...] = (
    ("Gelu", _scaled(0.5, _commuting("Add", _ERF, Number(1.0)))),
    ("HardSwish", (*_scaled(1 / 6, _GATE), _commuting("Mul", X, _HARD_SIGMOID))),
    ("HardSigmoid", (Op("Div", (_GATE, Number(6.0))), _commuting("Mul", _GATE, Number(1 / 6)))),
    ("Silu", (_commuting("Mul", X, Op("Sigmoid", (X,))),)),
    ("Softmax", (Op("Div", (_EXP, Op("ReduceSum", (_EXP,), bind="total"))),)),
    ("LayerNorm", (
        Op("Div", (_cast(_CENTRED), _cast(_DEVIATION))),
        _commuting("Mul", _cast(_CENTRED), _cast(_INVERSE)),
    )),
    ("GroupNorm1", (Op("Reshape", (_INSTANCE,)),)),
)  # fmt: skip
"""Larger functions first: a node belongs to one composite only."""


def find_composites(graph: Graph, misses: list[Miss] | None = None) -> list[Composite]:
    """Return every composite, in the order of the graph; append near-misses to ``misses``."""
    roots: dict[str, list[Node]] = {}
    for node in graph.nodes:
        roots.setdefault(node.op, []).append(node)
    taken: set[int] = set()
    found: list[Composite] = []
    for kind, ways in RECIPES:
        for composite in _of_kind(graph, kind, ways, roots, misses if misses is not None else []):
            mine = {id(node) for node in composite.nodes}
            if not mine & taken:
                taken |= mine
                found.append(composite)
    order = {id(node): index for index, node in enumerate(graph.nodes)}
    return sorted(found, key=lambda composite: order[id(composite.nodes[-1])])


def _of_kind(
    graph: Graph, kind: str, ways: tuple[Op, ...], roots: dict[str, list[Node]], misses: list[Miss]
) -> Iterator[Composite]:
    """Yield what matches one of ``ways`` and passes the checks of its kind."""
    for way in ways:
        for root in roots.get(way.kind, []):
            bound = match(way, root, graph)
            if isinstance(bound, Miss):
                continue
            found = _close(graph, kind, root, bound)
            if isinstance(found, Miss):
                misses.append(found)
            else:
                yield found


def _close(graph: Graph, kind: str, root: Node, bound: Match) -> Composite | Miss:
    """Return the composite ending at ``root``, its scale and offset included, or why it is none."""
    if reason := _objection(kind, bound):
        return Miss(f"{kind}: {reason}", root.name)
    end = _with_affine(graph, root, bound) if kind in ("LayerNorm", "GroupNorm1") else root
    if end is None:
        return Miss(f"{kind}: without a constant scale and offset", root.name)
    nodes = _between(bound["x"], end)
    if nodes is None:
        return Miss(f"{kind}: reads another tensor too", root.name)
    inner = {id(node) for node in nodes}
    for node in nodes[:-1]:
        for out in node.outputs:
            if is_output(graph, out) or any(id(reader) not in inner for reader in out.outputs):
                return Miss(f"{kind}: a value inside is read outside", node.name)
    return Composite(kind, nodes, bound["x"], end.outputs[0], bound)


def _objection(kind: str, bound: Match) -> str:
    """Return why the attributes of a match do not say what its shape says; empty when they do."""
    if kind == "HardSwish" and "gate" in bound:
        gate = bound["gate"].attrs
        off = abs(gate.get("alpha", 0.2) - 1 / 6) + abs(gate.get("beta", 0.5) - 0.5)
        return "" if off < 1e-4 else "HardSigmoid of another slope"
    if kind == "LayerNorm":
        return _same_axes(bound["mean"], bound["variance"])
    if kind == "Softmax":
        return _same_axes(bound["total"], bound.get("peak", bound["total"]), most=1)
    if kind == "GroupNorm1":
        scale = operand(bound["norm"], 1)
        one = scale is not None and is_constant(scale) and list(scale.shape) == [1]
        return "" if one else "more than one group"
    return ""


def _same_axes(first: Node, second: Node, most: int = 8) -> str:
    axes = axes_of(first)
    if axes is None or axes != axes_of(second) or len(axes) > most:
        return "reductions over axes that are not one constant set"
    if not (first.attrs.get("keepdims", 1) and second.attrs.get("keepdims", 1)):
        return "a reduction that drops its axes"
    return ""


def _with_affine(graph: Graph, root: Node, bound: Match) -> Node | None:
    """Return the last node of scale and offset after ``root``; bind ``gamma`` and ``beta``.

    A GroupNorm must have both: its Reshape alone is nothing that a kernel could take.
    """
    end = root
    for op, name in (("Mul", "gamma"), ("Add", "beta")):
        after = sole_consumer(graph, end.outputs[0])
        if after is not None and after.op == "Cast":
            after = sole_consumer(graph, after.outputs[0])
        factor = _parameter(after, bound) if after is not None and after.op == op else None
        if factor is not None:
            end, bound[name] = after, factor
    return None if "norm" in bound and not {"gamma", "beta"} <= bound.keys() else end


def _parameter(node: Node, bound: Match) -> Tensor | None:
    """Return the constant operand of ``node`` that has one number per normalised position."""
    found = next((tensor for tensor in node.inputs if is_constant(tensor)), None)
    if found is None:
        return None
    wide = [index - len(found.shape) for index, size in enumerate(found.shape) if size != 1]
    if "norm" in bound:
        return found if len(wide) <= 1 else None
    trailing = len(axes_of(bound["mean"]) or ())
    return found if all(axis >= -trailing for axis in wide) else None


def _between(source: Tensor, end: Node) -> tuple[Node, ...] | None:
    """Return the nodes from ``source`` to ``end``; None when a path starts anywhere else."""
    nodes: dict[int, Node] = {}

    def visit(node: Node) -> bool:
        if id(node) in nodes:
            return True
        above = [tensor for tensor in node.inputs if tensor is not source]
        above = [tensor for tensor in above if not is_constant(tensor)]
        makers = [producer(tensor) for tensor in above]
        if any(maker is None for maker in makers) or not all(map(visit, makers)):
            return False
        nodes[id(node)] = node
        return True

    return tuple(nodes.values()) if visit(end) else None
