# SPDX-License-Identifier: Apache-2.0
"""Which axis of every activation counts channels, as far as that can be said."""

from collections.abc import Iterator, Mapping

from qhyvit_onnx.graph import Graph, Node, axes_of, is_constant
from qhyvit_onnx.layout.moves import Move
from qhyvit_onnx.symbolic.shapes import Knowledge

FIRST = frozenset({
    "Conv", "ConvTranspose", "AveragePool", "MaxPool", "LpPool", "GlobalAveragePool",
    "GlobalMaxPool", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN",
})  # fmt: skip
"""Ops that ONNX defines on (N, C, ...)."""
LAST = frozenset({"MatMul", "Gemm"})
"""Ops whose output features lie on the last axis."""
REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"})
ELEMENTWISE = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "Where", "PRelu",
    "Relu", "LeakyRelu", "Elu", "Celu", "Selu", "Softplus", "Softsign", "ThresholdedRelu",
    "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Gelu", "Mish", "Clip", "Abs", "Neg",
    "Exp", "Log", "Sin", "Cos", "Sqrt", "Reciprocal", "Sign", "Floor", "Ceil", "Round", "Cast",
    "Softmax", "LogSoftmax", "LayerNormalization", "LpNormalization", "Resize", "Upsample",
})  # fmt: skip
"""Ops whose output has its channels where an operand has them."""


def channel_axes(
    graph: Graph, known: Knowledge, moves: Mapping[str, tuple[Move, ...]]
) -> dict[str, int]:
    """Return the channel axis of every tensor for which it can be said, counted from the front."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        steps = moves.get(node.name, ())
        said = _moved(steps, found) if steps else _computed(node, known, found)
        found.update(said)
    return found


def _moved(moves: tuple[Move, ...], found: Mapping[str, int]) -> dict[str, int]:
    """Return the channel axis of each output that has the channels of its inputs by themselves."""
    seen: dict[str, set[int | None]] = {}
    for move in moves:
        if move.input in found:
            seen.setdefault(move.output, set()).add(move.map.alone(found[move.input]))
    single = {name: next(iter(axes)) for name, axes in seen.items() if len(axes) == 1}
    return {name: axis for name, axis in single.items() if axis is not None}


def _computed(node: Node, known: Knowledge, found: Mapping[str, int]) -> dict[str, int]:
    shape = known.shapes.get(node.outputs[0].name) if node.outputs else None
    if shape is None or (node.domain or "") not in {"", "ai.onnx"}:
        return {}
    axis = _axis(node, known, found)
    return {node.outputs[0].name: axis} if axis is not None and axis < len(shape) else {}


def _axis(node: Node, known: Knowledge, found: Mapping[str, int]) -> int | None:
    rank = len(known.shapes[node.outputs[0].name])
    if node.op in FIRST:
        return 1
    if node.op in LAST or _normalises_last(node, rank):
        return rank - 1
    if node.op in REDUCTIONS:
        return _reduced(node, known, found)
    if node.op in ELEMENTWISE:
        said = next(_aligned(node, known, found), None)
        return _of_constants(node, known) if said is None else said
    return None


def _normalises_last(node: Node, rank: int) -> bool:
    return node.op == "LayerNormalization" and node.attrs.get("axis", -1) in {-1, rank - 1}


def _aligned(node: Node, known: Knowledge, found: Mapping[str, int]) -> Iterator[int]:
    """Yield the channel axis of each operand, seen from the output it is broadcast to."""
    target = known.shapes[node.outputs[0].name]
    for tensor in node.inputs:
        axis, shape = found.get(tensor.name), known.shapes.get(tensor.name)
        if axis is None or shape is None or len(shape) > len(target):
            continue
        behind = len(target) - len(shape) + axis
        if shape[axis] == target[behind]:
            yield behind


def _of_constants(node: Node, known: Knowledge) -> int | None:
    """Return the one axis along which constant operands vary: a gain or bias for each channel."""
    target = known.shapes[node.outputs[0].name]
    axes = set()
    for tensor in filter(is_constant, node.inputs):
        shape = known.shapes[tensor.name]
        behind = len(target) - len(shape)
        axes |= {behind + axis for axis, size in enumerate(shape) if size != 1}
    return axes.pop() if len(axes) == 1 else None


def _reduced(node: Node, known: Knowledge, found: Mapping[str, int]) -> int | None:
    name = node.inputs[0].name
    axis, shape, axes = found.get(name), known.shapes.get(name), axes_of(node)
    if axis is None or shape is None or axes is None:
        return None
    over = {item % len(shape) for item in axes}
    if axis in over:
        return None
    return axis if node.attrs.get("keepdims", 1) else axis - sum(item < axis for item in over)
