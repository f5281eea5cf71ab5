# SPDX-License-Identifier: Apache-2.0
"""Fusion units: the groups of nodes that onnxruntime can run as one integer kernel.

A unit is found on the float graph, before anything is decided; ``place`` says which run int8.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.bounds import bounds_of
from qhyvit_onnx.composites import find_composites
from qhyvit_onnx.graph import (
    MOVEMENT,
    Graph,
    Node,
    Tensor,
    consumers_through,
    is_constant,
    operand,
    producer,
    sole_consumer,
    value,
)
from qhyvit_onnx.kinds import CONVOLUTIONS, LAYERS, Kind

__all__ = [
    "CONVOLUTIONS",
    "LAYERS",
    "UNIT_OPS",
    "Kind",
    "Unit",
    "find_units",
    "is_softmax",
    "moves",
    "readers",
    "source_of",
]


@dataclass(frozen=True, eq=False)
class Unit:
    """One fusion unit.

    ``nodes`` are all nodes that the kernel replaces, main node first; ``inputs`` and ``output``
    are the activations that cross its border.
    """

    kind: Kind
    nodes: tuple[Node, ...]
    inputs: tuple[Tensor, ...]
    output: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    clip: tuple[float, float] | None = None
    """Bounds that a fused Relu or Clip puts on the output."""

    @property
    def node(self) -> Node:
        """The node that names the unit."""
        return self.nodes[0]

    @property
    def name(self) -> str:
        """Name of the main node."""
        return str(self.node.name)

    @property
    def may_write_floats(self) -> bool:
        """Whether an integer kernel can write the output as floats: QGemm, MatMulIntegerToFloat.

        Not before a Relu or Clip: onnxruntime would take the pair for a float FusedGemm, or wait
        for a Q that the pair does not have.
        """
        clipped = any(node.op in {"Relu", "Clip"} for node in self.output.outputs)
        linear = self.kind in {Kind.GEMM, Kind.MATMUL, Kind.PRODUCT}
        return linear and self.clip is None and not clipped

    @property
    def interior(self) -> tuple[Tensor, ...]:
        """Tensors inside the unit that need a grid of their own: the sigmoid of a SiLU."""
        return (self.nodes[1].outputs[0],) if self.kind is Kind.SILU else ()

    @property
    def gate(self) -> str:
        """Name of the node that computes the sigmoid of a SiLU, or of a GELU on integers."""
        return f"{self.name}/gate" if self.kind is Kind.GELU else str(self.nodes[1].name)

    @property
    def weight_axis(self) -> int:
        """Axis of the output channels in the weight (ort: Conv 0, Gemm N, MatMul last)."""
        if self.kind in CONVOLUTIONS:
            return 0
        if self.kind is Kind.GEMM:
            return 0 if self.node.attrs.get("transB", 0) else 1
        return len(self.weight.shape) - 1 if self.weight is not None else 0


Finder: TypeAlias = Callable[[Graph, Node], Unit | None]


def find_units(graph: Graph) -> list[Unit]:
    """Return every unit of ``graph``, in topological order.

    Nothing inside a HardSwish or norm that is spelled out is a unit, and a GELU is one as a whole:
    a Q between its nodes would keep onnxruntime from running it as one float kernel.
    """
    spelled = [item for item in find_composites(graph) if item.kind != "Silu"]
    found: dict[str, Unit | None] = dict.fromkeys(n.name for item in spelled for n in item.nodes)
    for item in (item for item in spelled if item.kind == "Gelu"):
        gelu = Unit(Kind.GELU, item.nodes[::-1], (item.input,), item.output)
        found[gelu.name] = gelu
    units = (found[n.name] if n.name in found else _unit_at(graph, n) for n in graph.nodes)
    return [unit for unit in units if unit is not None]


def _unit_at(graph: Graph, node: Node) -> Unit | None:
    if node.op in _FINDERS and node.domain in (None, "", "ai.onnx"):
        return _FINDERS[node.op](graph, node)
    return None


def _conv(graph: Graph, node: Node) -> Unit | None:
    weight, bias = operand(node, 1), operand(node, 2)
    if value(weight) is None or (bias is not None and value(bias) is None):
        return None
    nodes, clip = _with_clip(graph, (node,))
    return Unit(
        _conv_kind(node, weight), nodes, (node.inputs[0],), nodes[-1].outputs[0], weight, bias, clip
    )


def _conv_kind(node: Node, weight: Tensor) -> Kind:
    group, per_group = node.attrs.get("group", 1), weight.shape[1]
    if group > 1:
        return Kind.DEPTHWISE if per_group == 1 and weight.shape[0] == group else Kind.GROUPED
    if per_group <= 4:
        return Kind.STEM
    return Kind.POINTWISE if prod(weight.shape[2:]) == 1 else Kind.CONV


def _gemm(graph: Graph, node: Node) -> Unit | None:
    weight, bias = operand(node, 1), operand(node, 2)
    plain = not node.attrs.get("transA", 0) and node.attrs.get("alpha", 1.0) == 1.0
    if value(weight) is None or not plain or node.attrs.get("beta", 1.0) != 1.0:
        return None
    if bias is not None and not _per_column(value(bias), _columns(node, weight)):
        return None
    nodes, clip = _with_clip(graph, (node,))
    return Unit(Kind.GEMM, nodes, (node.inputs[0],), nodes[-1].outputs[0], weight, bias, clip)


def _columns(node: Node, weight: Tensor) -> int:
    return int(weight.shape[0 if node.attrs.get("transB", 0) else 1])


def _matmul(graph: Graph, node: Node) -> Unit | None:
    left, right = node.inputs
    if value(left) is not None:
        return None  # constant on the left: no kernel takes per-row weights
    if value(right) is None and not (_counts(left) or _counts(right)):
        return Unit(Kind.PRODUCT, (node,), (left, right), node.outputs[0])
    if value(right) is None or right.values.ndim < 2:
        return None
    add = sole_consumer(graph, node.outputs[0])
    bias = _bias_of(add, node, right.shape[-1]) if right.values.ndim == 2 else None
    linear = (node,) if bias is None or add is None else (node, add)
    nodes, clip = _with_clip(graph, linear)
    return Unit(Kind.MATMUL, nodes, (left,), nodes[-1].outputs[0], right, bias, clip)


def _bias_of(add: Node | None, matmul: Node, columns: int) -> Tensor | None:
    """Return the constant that ``add`` adds per column to ``matmul``, if that is what it does."""
    if add is None or add.op != "Add":
        return None
    other = add.inputs[1] if add.inputs[0] is matmul.outputs[0] else add.inputs[0]
    array, rank = value(other), len(matmul.inputs[0].shape or (0,))
    if array is None or not _per_column(array, columns) or array.ndim > rank:
        return None  # a bias of more dims than the product would add dims to it
    return other


def _per_column(array: NDArray[Any] | None, columns: int) -> bool:
    return array is not None and array.ndim > 0 and array.size == array.shape[-1] == columns


def _counts(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` is known to hold something else than floats: no grid is for it."""
    return tensor.dtype is not None and not np.issubdtype(tensor.dtype, np.floating)


def _with_clip(
    graph: Graph, nodes: tuple[Node, ...]
) -> tuple[tuple[Node, ...], tuple[float, float] | None]:
    """Add a Relu or constant Clip that is the only reader of the last node."""
    after = sole_consumer(graph, nodes[-1].outputs[0])
    clip = None if after is None else bounds_of(after)
    if after is None or clip is None or after.inputs[0] is not nodes[-1].outputs[0]:
        return nodes, None
    low, high = clip
    if low == 0.0 < high:  # onnxruntime folds it only if no code lies outside
        return (*nodes, after), clip
    return nodes, None


def _sigmoid(graph: Graph, node: Node) -> Unit | None:
    mul = _silu_end(graph, node)
    if mul is not None:
        return Unit(Kind.SILU, (mul, node), (node.inputs[0],), mul.outputs[0])
    return Unit(Kind.SIGMOID, (node,), (node.inputs[0],), node.outputs[0])


def _silu_end(graph: Graph, node: Node | None) -> Node | None:
    """Return the Mul that makes a SiLU of Sigmoid ``node``, if there is one."""
    if node is None or node.op != "Sigmoid":
        return None
    mul = sole_consumer(graph, node.outputs[0])
    gates = mul is not None and mul.op == "Mul" and any(t is node.inputs[0] for t in mul.inputs)
    return mul if gates else None


def _single(kind: Kind) -> Finder:
    def find(_graph: Graph, node: Node) -> Unit | None:
        if is_constant(node.inputs[0]) or _counts(node.inputs[0]):
            return None
        return Unit(kind, (node,), (node.inputs[0],), node.outputs[0])

    return find


def _pair(kind: Kind) -> Finder:
    def find(graph: Graph, node: Node) -> Unit | None:
        left, right = node.inputs
        if is_constant(left) or is_constant(right) or left is right:
            return None
        if _counts(left) or _counts(right):
            return None
        if any(_silu_end(graph, producer(tensor)) is node for tensor in (left, right)):
            return None  # the SILU unit's
        return Unit(kind, (node,), (left, right), node.outputs[0])

    return find


def _concat(_graph: Graph, node: Node) -> Unit | None:
    if any(is_constant(tensor) or _counts(tensor) for tensor in node.inputs):
        return None
    return Unit(Kind.CONCAT, (node,), tuple(node.inputs), node.outputs[0])


def _pool(_graph: Graph, node: Node) -> Unit | None:
    if any(step != 1 for step in node.attrs.get("dilations") or []):
        return None  # QLinearAveragePool has no dilations
    return Unit(Kind.POOL, (node,), (node.inputs[0],), node.outputs[0])


_FINDERS: dict[str, Finder] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Sigmoid": _sigmoid,
    "Gelu": _single(Kind.GELU),
    "LeakyRelu": _single(Kind.LEAKY_RELU),
    "Softmax": _single(Kind.SOFTMAX),
    "Add": _pair(Kind.ADD),
    "Mul": _pair(Kind.MUL),
    "Concat": _concat,
    "GlobalAveragePool": _pool,
    "AveragePool": _pool,
}

UNIT_OPS = frozenset(_FINDERS)
"""Ops that a unit may start at."""


def moves(node: Node) -> bool:
    """Tell whether ``node`` only moves elements of its first input, by constant instructions."""
    return node.op in MOVEMENT and not is_constant(node.inputs[0])


def source_of(tensor: Tensor) -> Tensor:
    """Return the computed tensor whose elements ``tensor`` holds: they share one grid."""
    while (node := producer(tensor)) is not None and moves(node):
        tensor = node.inputs[0]
    return tensor


def is_softmax(tensor: Tensor) -> bool:
    """Tell whether a softmax writes ``tensor``: values in [0, 1], whatever the data."""
    node = producer(tensor)
    return node is not None and node.op == "Softmax"


def readers(tensor: Tensor) -> Iterator[Node]:
    """Yield the nodes that compute with ``tensor``, looking through data movement."""
    yield from consumers_through(tensor, MOVEMENT)
