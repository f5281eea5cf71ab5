# SPDX-License-Identifier: Apache-2.0
"""How much work a node is: multiply-adds, counted from shapes."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from qhyvit_onnx.graph import LINEAR, Graph, Node, is_constant
from qhyvit_onnx.symbolic.dims import Dim, Shape, count, is_number
from qhyvit_onnx.symbolic.shapes import infer

Shapes: TypeAlias = Mapping[str, Shape]
"""Tensor name to its dims; a tensor of unknown shape is missing."""

OPAQUE = frozenset({
    "RNN", "GRU", "LSTM", "DeformConv", "Attention", "If", "Loop", "Scan", "SequenceMap",
})  # fmt: skip
"""Ops that multiply in ways not counted here: their work is unknown, not nothing."""


def is_layer(node: Node) -> bool:
    """Tell whether ``node`` multiplies by a constant weight."""
    return node.op in LINEAR and any(map(is_constant, node.inputs[:2]))


def is_product(node: Node) -> bool:
    """Tell whether ``node`` multiplies two computed tensors as matrices."""
    return node.op in {"MatMul", "Gemm", "Einsum"} and not any(map(is_constant, node.inputs[:2]))


def shapes_at(graph: Graph, inputs: Mapping[str, tuple[int | None, ...]]) -> Shapes:
    """Return the shape of every tensor when the inputs are as large as ``inputs`` says.

    A free dim that ``inputs`` leaves open is 1 where it counts samples (the first of several), and
    stays open elsewhere. ``graph`` is not changed.
    """
    sized = graph.copy()
    named: dict[str, int] = {}
    for tensor in sized.inputs:
        given = inputs.get(tensor.name, ())
        for dim, size in zip(tensor.shape or (), given, strict=False):
            if isinstance(dim, str) and size is not None:
                named[dim] = size
    for tensor in sized.inputs:
        tensor.shape = _sized(tensor.shape, inputs.get(tensor.name, ()), named)
    return infer(sized).shapes


def _sized(
    shape: list[int | str | None] | None,
    given: tuple[int | None, ...],
    named: Mapping[str, int],
) -> list[int | str | None] | None:
    """Return the dims of one input; equal names are equal sizes on every input."""
    if shape is None:
        return None
    sizes = list(given) or [None] * len(shape)
    found: list[int | str | None] = []
    for axis, (dim, size) in enumerate(zip(shape, sizes, strict=True)):
        free = not isinstance(dim, int)
        known = named.get(dim) if isinstance(dim, str) and size is None else size
        if known is None and axis == 0 and len(shape) > 1:
            known = 1
        found.append(known if free and known is not None else dim)
    return found


def multiply_adds(node: Node, shapes: Shapes) -> Dim | None:
    """Return the multiply-adds of one run of ``node``; None when a shape or the op is unknown.

    Units:
        One multiply-add is one multiplication and one addition: half of what is called FLOP.
        Counted are convolutions, Gemm, MatMul and Einsum of two operands; padding counts as data.
        What works element by element is 0.
    """
    if node.domain not in {None, "", "ai.onnx"} or node.op in OPAQUE:
        return None
    rule = _RULES.get(node.op)
    if rule is None:
        return 0
    known = [shapes.get(tensor.name) for tensor in (*node.inputs[:2], node.outputs[0])]
    if len(known) != 3:
        return None
    first, second, out = known
    return (
        None if first is None or second is None or out is None else rule(node, first, second, out)
    )


def total(counts: Iterable[Dim | None]) -> int | None:
    """Return the sum; None when any part is unknown, or depends on a free dim."""
    found = 0
    for part in counts:
        if part is None or not is_number(part):
            return None
        found += int(part)
    return found


def shown_work(count: int | None) -> str:
    """Return ``1.93 G``: three digits and a decimal prefix; ``?`` when unknown."""
    if count is None:
        return "?"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            number = count / size
            return f"{number:.{2 - (number >= 9.995) - (number >= 99.95)}f} {unit}"
    return str(count)


Rule: TypeAlias = Callable[[Node, Shape, Shape, Shape], Dim | None]
"""(node, shape of its first input, of its second, of its output) to multiply-adds."""


def _conv(_node: Node, _x: Shape, weight: Shape, out: Shape) -> Dim:
    return count(out) * count(weight[1:])  # weight (C_out, C_in / groups, *kernel)


def _conv_transpose(_node: Node, x: Shape, weight: Shape, _out: Shape) -> Dim:
    return count(x) * count(weight[1:])  # weight (C_in, C_out / groups, *kernel)


def _gemm(node: Node, a: Shape, _b: Shape, out: Shape) -> Dim:
    return count(out) * a[0 if node.attrs.get("transA", 0) else 1]


def _matmul(_node: Node, a: Shape, _b: Shape, out: Shape) -> Dim:
    return count(out) * a[-1]


def _einsum(node: Node, a: Shape, b: Shape, _out: Shape) -> Dim | None:
    """Return the product of the sizes of all letters: each is one loop."""
    terms = node.attrs["equation"].replace(" ", "").split("->")[0].split(",")
    if len(terms) != 2 or "." in node.attrs["equation"]:
        return None
    sizes: dict[str, Dim] = {}
    for term, shape in zip(terms, (a, b), strict=True):
        for letter, size in zip(term, shape, strict=True):
            wider = is_number(sizes.get(letter, 1)) and sizes.get(letter, 1) == 1
            sizes[letter] = size if wider else sizes[letter]
    return count(tuple(sizes.values()))


_RULES: Mapping[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
}
