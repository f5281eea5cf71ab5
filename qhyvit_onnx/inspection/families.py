# SPDX-License-Identifier: Apache-2.0
"""Which ops a graph is made of, by family."""

from collections import Counter
from collections.abc import Mapping

from qhyvit_onnx.composites import find_composites
from qhyvit_onnx.graph import MOVEMENT, Graph, Node, Tensor, is_constant, producer

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "convolution": ("Conv", "ConvTranspose"),
    "linear": ("Gemm", "linear MatMul"),
    "attention product": ("MatMul", "Einsum", "Softmax"),
    "norm": ("BatchNormalization", "LayerNormalization", "LayerNorm", "GroupNormalization",
             "GroupNorm1", "InstanceNormalization"),
    "activation": ("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "Elu", "Erf", "Gelu",
                   "Silu", "HardSwish", "HardSigmoid", "Mish"),
    "elementwise": ("Add", "Sub", "Mul", "Div", "Pow", "Sqrt"),
    "pooling": ("AveragePool", "GlobalAveragePool", "MaxPool", "ReduceMean"),
    "quantization": ("QuantizeLinear", "DequantizeLinear"),
    "data movement": ("Concat", *sorted(MOVEMENT - {"MaxPool"})),
}  # fmt: skip
"""Families of ops, in the order they are shown; the rest is ``other``."""


def families_of(graph: Graph) -> dict[str, dict[str, int]]:
    """Count ops by family; a function spelled out in several nodes counts once, by its name."""
    composites = find_composites(graph)
    inside = {id(node) for composite in composites for node in composite.nodes}
    counts = Counter(_op(node) for node in graph.nodes if id(node) not in inside)
    counts.update(composite.kind for composite in composites)
    home = {op: family for family, ops in FAMILIES.items() for op in ops}
    found: dict[str, dict[str, int]] = {}
    for family in (*FAMILIES, "other"):
        ops = [(op, n) for op, n in counts.most_common() if home.get(op, "other") == family]
        if ops:
            found[family] = dict(ops)
    return found


def _op(node: Node) -> str:
    linear = node.op == "MatMul" and any(map(_is_weight, node.inputs))
    return "linear MatMul" if linear else str(node.op)


def _is_weight(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` is a constant, quantized or not."""
    above = producer(tensor)
    packed = above is not None and above.op == "DequantizeLinear" and is_constant(above.inputs[0])
    return packed or is_constant(tensor)
