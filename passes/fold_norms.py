# SPDX-License-Identifier: Apache-2.0
"""FoldNorms: BatchNormalization, and constant scales and offsets, into the layer before."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.graph import (
    Graph,
    Node,
    Tensor,
    can_redirect,
    cancel_reshapes,
    constant,
    fresh,
    is_constant,
    make_node,
    names,
    operand,
    redirect,
    remove_node,
    tidy,
    value,
    variable,
)
from qhyvit_onnx.kernels.norms import Affine, Layer, channels, fold_affine
from qhyvit_onnx.passes._affine import Host, Scaling, host_of, scaling
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.pattern import Miss
from qhyvit_onnx.state import State


@dataclass(frozen=True)
class FoldNorms(Pass):
    """Fold each per-channel scale and offset whose layer has no other reader."""

    name = "fold-norms"
    summary = "BatchNormalization and constant scales into the linear layer before them"

    def run(self, state: State) -> Outcome:
        """Fold in the order of the graph, so that a chain of scales ends in one layer."""
        graph, taken = state.graph, names(state.graph)
        misses: Counter[str] = Counter()
        folded: Counter[str] = Counter()
        norms = sum(node.op == "BatchNormalization" for node in graph.nodes)
        for node in list(graph.nodes):
            found = scaling(node)
            result = _fold(graph, found, taken) if isinstance(found, Scaling) else found
            if isinstance(result, Miss):
                misses[f"{node.op}: {result.reason}"] += node.op == "BatchNormalization"
            elif result is not None:
                folded[node.op] += 1
        if folded:
            cancel_reshapes(graph, _same_shape)
        tidy(graph)
        done = folded["BatchNormalization"]
        scales = folded.total() - done
        note = f"folded {done} of {norms} BatchNormalization, {scales} constant scales and offsets"
        return Outcome(folded.total(), note, +misses)


def _same_shape(first: Tensor, second: Tensor) -> bool:
    """Tell whether two tensors surely have the same shape."""
    shapes = first.shape, second.shape
    return None not in shapes and shapes[0] == shapes[1] and None not in shapes[0]


def _fold(graph: Graph, found: Scaling, taken: set[str]) -> Host | Miss | None:
    """Fold one scaling; None for a bias that is where it belongs already."""
    host = host_of(graph, found)
    if isinstance(host, Miss):
        return host
    if host.node.op == "MatMul" and found.node.op == "Add" and host.bias_node is None:
        return None
    layer = _layer(host)
    if isinstance(layer, Miss):
        return layer
    size = max(found.affine.gain.size, found.affine.offset.size)
    if size not in (1, channels(layer)):
        return Miss(f"{size} channels on a layer of {channels(layer)}", found.node.name)
    if not can_redirect(graph, found.node.outputs[0], found.input):
        return Miss("a graph output on both sides", found.node.name)
    _write(graph, host, layer, found.affine, taken)
    redirect(graph, found.node.outputs[0], found.node.inputs[_data_index(found)])
    remove_node(graph, found.node)
    return host


def _data_index(found: Scaling) -> int:
    """Return where the scaled tensor enters, which may have been renewed by the fold."""
    return next(i for i, tensor in enumerate(found.node.inputs) if not is_constant(tensor))


def _layer(host: Host) -> Layer | Miss:
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
    axis = {
        "Conv": 0,
        "ConvTranspose": 1,
        "Gemm": 0 if node.attrs.get("transB", 0) else 1,
        "MatMul": weight.ndim - 1,
    }[node.op]
    return Layer(weight, flat, axis, int(node.attrs.get("group", 1)))


def _constant_index(node: Node) -> int:
    return next(i for i, tensor in enumerate(node.inputs) if is_constant(tensor))


def _write(graph: Graph, host: Host, layer: Layer, affine: Affine, taken: set[str]) -> None:
    """Give the host new constants; the old ones may have other readers and stay as they are."""
    weight, bias = fold_affine(layer, affine)
    node = host.node
    if weight is not layer.weight:
        node.inputs[1] = _renewed(node.inputs[1].name, weight, taken)
    if bias is None:
        return
    if host.bias_node is not None:
        at = _constant_index(host.bias_node)
        host.bias_node.inputs[at] = _renewed(host.bias_node.inputs[at].name, bias, taken)
    elif node.op == "MatMul":
        _add_bias(graph, node, bias, taken)
    else:
        held = operand(node, 2)
        name = held.name if held is not None else f"{node.name}.bias"
        node.inputs = [*node.inputs[:2], _renewed(name, bias, taken)]
        node.attrs.pop("beta", None)


def _add_bias(graph: Graph, node: Node, bias: NDArray[Any], taken: set[str]) -> None:
    """Put an Add between a MatMul and its only reader."""
    out = node.outputs[0]
    name = fresh(f"{node.name}.add", taken)
    inner = variable(fresh(f"{out.name}.product", taken), out)
    taken |= {name, inner.name}
    node.outputs = [inner]
    held = _renewed(f"{node.name}.bias", bias, taken)
    added = make_node("Add", name, [inner, held], [out])
    graph.nodes.insert(next(i for i, n in enumerate(graph.nodes) if n is node) + 1, added)


def _renewed(name: str, array: NDArray[Any], taken: set[str]) -> Tensor:
    """Return a new constant, named after the one it replaces."""
    new = fresh(f"{name.removesuffix('.folded')}.folded", taken)
    taken.add(new)
    return constant(new, array)
