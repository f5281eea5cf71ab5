# SPDX-License-Identifier: Apache-2.0
"""Linear layers as hosts of a fold: their constants read as one Layer, and written back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.graph import (
    LINEAR,
    Graph,
    Node,
    Tensor,
    constant,
    fresh,
    is_constant,
    make_node,
    operand,
    producer,
    sole_consumer,
    uses,
    value,
    variable,
)
from qhyvit_onnx.kernels.norms import Layer
from qhyvit_onnx.pattern import Miss


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """A layer that can take a scale and offset over."""

    node: Node
    bias_node: Node | None
    """The Add behind a MatMul that carries its bias."""

    @property
    def output(self) -> Tensor:
        """The tensor that the layer writes, its bias added."""
        return (self.bias_node or self.node).outputs[0]


def host_at(graph: Graph, node: Node) -> Host | Miss:
    """Return the layer that ``node`` multiplies for, with the Add that carries its bias."""
    weight = operand(node, 1)
    if node.op not in LINEAR or weight is None or is_constant(node.inputs[0]):
        return Miss(f"{node.op} is no layer", node.name)
    if not is_constant(weight):
        return Miss(f"{node.op} of two activations", node.name)
    if len(weight.shape) < 2:  # a matrix times a vector has no output channels
        return Miss(f"{node.op} by a vector", node.name)
    after = sole_consumer(graph, node.outputs[0])  # not one inside an If: its graph is another
    return Host(node, after if after is not None and carries_bias(graph, after) else None)


def carries_bias(graph: Graph, node: Node) -> bool:
    """Tell whether ``node`` adds the bias of a MatMul: one number for each of its columns."""
    if node.op != "Add":
        return False
    maker, held = matmul_and_bias(node)
    if maker is None or held is None or uses(graph, maker.outputs[0]) != 1:
        return False
    weight, out = operand(maker, 1), maker.outputs[0].shape
    if weight is None or not is_constant(weight) or not held.shape:
        return False
    widens = len(held.shape) > (1 if out is None else len(out))
    return not widens and held.shape[-1] == _volume(held.shape) == weight.shape[-1]


def matmul_and_bias(node: Node) -> tuple[Node | None, Tensor | None]:
    """Return the MatMul whose product ``node`` adds a constant to, and that constant."""
    held = next((tensor for tensor in node.inputs if is_constant(tensor)), None)
    makers = [producer(tensor) for tensor in node.inputs if not is_constant(tensor)]
    maker = makers[0] if len(makers) == 1 else None
    return (maker if maker is not None and maker.op == "MatMul" else None), held


def output_axis(node: Node) -> int | None:
    """Return the axis of the output along which the weight's outputs lie."""
    if node.op != "MatMul":
        return 1
    shape = node.outputs[0].shape
    return None if shape is None else len(shape) - 1


def layer_of(host: Host) -> Layer | Miss:
    """Return the constants of the host."""
    node, weight = host.node, np.asarray(host.node.inputs[1].values)
    held = (
        operand(host.bias_node, _constant_index(host.bias_node))
        if host.bias_node
        else operand(node, 2)
    )
    bias = None if held is None else value(held)
    if held is not None and bias is None:
        return Miss(f"a bias of {node.op} that is not constant", node.name)
    if bias is not None and bias.size not in (1, bias.shape[-1] if bias.ndim else 1):
        return Miss(f"a bias of {node.op} that differs from row to row", node.name)
    flat = None if bias is None else bias.reshape(-1) * float(node.attrs.get("beta", 1.0))
    transposed = bool(node.attrs.get("transB", 0))
    outputs, inputs = {
        "Conv": (0, 1),
        "ConvTranspose": (1, 0),
        "Gemm": (0, 1) if transposed else (1, 0),
        "MatMul": (weight.ndim - 1, weight.ndim - 2),
    }[node.op]
    alpha = float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
    return Layer(weight, flat, outputs, int(node.attrs.get("group", 1)), inputs, alpha)


def write_layer(
    graph: Graph,
    host: Host,
    old: Layer,
    new: tuple[NDArray[Any], NDArray[Any] | None],
    taken: set[str],
) -> None:
    """Give the host new constants; the old ones may have other readers and stay as they are."""
    (weight, bias), node = new, host.node
    if weight is not old.weight:
        node.inputs[1] = renewed(node.inputs[1].name, weight, taken)
    if bias is None or bias is old.bias:
        return
    if host.bias_node is not None:
        at = _constant_index(host.bias_node)
        host.bias_node.inputs[at] = renewed(host.bias_node.inputs[at].name, bias, taken)
    elif node.op == "MatMul":
        _add_bias(graph, node, bias, taken)
    else:
        held = operand(node, 2)
        name = held.name if held is not None else f"{node.name}.bias"
        node.inputs = [*node.inputs[:2], renewed(name, bias, taken)]
        node.attrs.pop("beta", None)


def _add_bias(graph: Graph, node: Node, bias: NDArray[Any], taken: set[str]) -> None:
    """Put an Add behind a MatMul; whoever read the product reads the sum."""
    out = node.outputs[0]
    name = fresh(f"{node.name}.add", taken)
    inner = variable(fresh(f"{out.name}.product", taken), out)
    taken |= {name, inner.name}
    node.outputs = [inner]
    held = renewed(f"{node.name}.bias", bias, taken)
    added = make_node("Add", name, [inner, held], [out])
    graph.nodes.insert(next(i for i, n in enumerate(graph.nodes) if n is node) + 1, added)


def renewed(name: str, array: NDArray[Any], taken: set[str]) -> Tensor:
    """Return a new constant, named after the one it replaces."""
    new = fresh(f"{name.removesuffix('.folded')}.folded", taken)
    taken.add(new)
    return constant(new, array)


def _constant_index(node: Node) -> int:
    return next(i for i, tensor in enumerate(node.inputs) if is_constant(tensor))


def _volume(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))
