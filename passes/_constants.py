# SPDX-License-Identifier: Apache-2.0
"""Constants: Constant nodes to initializers, and whatever follows from initializers alone."""

from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.graph import (
    Graph,
    Node,
    Tensor,
    constant,
    fresh,
    is_absent,
    is_constant,
    is_output,
    node_proto,
    remove_node,
    value,
)
from qhyvit_onnx.runtime import Options, Session
from qhyvit_onnx.symbolic.dims import is_number
from qhyvit_onnx.symbolic.shapes import Knowledge

LARGEST_BYTES = 1 << 20
"""A folded output may be this large, or as large as what it was computed from."""

NEVER = frozenset({
    "DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "RandomNormal", "RandomUniform",
    "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "If", "Loop", "Scan",
})  # fmt: skip
"""Ops that are not folded: quantized weights stay small, draws stay random."""

_SCALARS = {
    "value_float": np.float32, "value_floats": np.float32,
    "value_int": np.int64, "value_ints": np.int64,
}  # fmt: skip


def lift_constant_nodes(graph: Graph) -> int:
    """Turn Constant nodes into initializers of the same name."""
    edits = 0
    for node in [node for node in graph.nodes if node.op == "Constant"]:
        held = _held(node)
        out = node.outputs[0]
        if held is None or is_output(graph, out):
            continue
        remove_node(graph, node)
        out.to_constant(held)
        edits += 1
    return edits


def _held(node: Node) -> NDArray[Any] | None:
    """Return what a Constant node holds; None for strings and sparse tensors."""
    for name, dtype in _SCALARS.items():
        if name in node.attrs:
            return np.array(node.attrs[name], dtype=dtype)
    tensor = node.attrs.get("value")
    return None if tensor is None else tensor.values


def fold_constants(graph: Graph, known: Knowledge, taken: set[str]) -> int:
    """Compute what depends on initializers only, in one onnxruntime session; return the edits.

    Error:
        ModelError when onnxruntime cannot run a node whose inputs are all given.
    """
    nodes = _foldable(graph, known)
    if not nodes:
        return 0
    inside = {id(node) for node in nodes}
    wanted = [out for node in nodes for out in node.outputs if _leaves(out, inside)]
    arrays = Session(_model(graph, nodes, wanted, known), Options(threads=1)).run({})
    for out in wanted:
        name = fresh(f"{out.name}.folded", taken)
        taken.add(name)
        made = constant(name, np.asarray(arrays[out.name]))
        for reader in [reader for reader in out.outputs if id(reader) not in inside]:
            reader.inputs = [made if tensor is out else tensor for tensor in reader.inputs]
    return len(nodes)


def _leaves(out: Tensor, inside: set[int]) -> bool:
    return any(id(reader) not in inside for reader in out.outputs)


def _foldable(graph: Graph, known: Knowledge) -> list[Node]:
    """Return the nodes that are computable now, in order, without the outputs of the graph."""
    done: set[int] = set()
    found = []
    for node in graph.nodes:
        if (
            not node.inputs
            or node.op in NEVER
            or any(is_output(graph, out) for out in node.outputs)
        ):
            continue
        ready = all(is_constant(t) or is_absent(t) or id(t) in done for t in node.inputs)
        if ready and all(_small_enough(node, out, known) for out in node.outputs):
            found.append(node)
            done |= {id(out) for out in node.outputs}
    return found


def _small_enough(node: Node, out: Tensor, known: Knowledge) -> bool:
    """Tell whether folding adds less than a megabyte, or no more than it takes away."""
    size = _bytes(out, known)
    if size is None:
        return is_absent(out)
    return size <= LARGEST_BYTES or size <= sum(
        _bytes(tensor, known) or 0 for tensor in node.inputs
    )


def _bytes(tensor: Tensor, known: Knowledge) -> int | None:
    shape, elem = known.shapes.get(tensor.name), known.elems.get(tensor.name)
    if shape is None or elem is None or not all(map(is_number, shape)):
        return None
    return int(prod(shape)) * onnx.helper.tensor_dtype_to_np_dtype(elem).itemsize


def _model(
    graph: Graph, nodes: list[Node], wanted: list[Tensor], known: Knowledge
) -> onnx.ModelProto:
    """Return the nodes to fold as a model without inputs."""
    needed = {t.name: t for node in nodes for t in node.inputs if is_constant(t)}
    outputs = [
        onnx.helper.make_tensor_value_info(t.name, known.elems[t.name], None) for t in wanted
    ]
    weights = [onnx.numpy_helper.from_array(_array(t), name) for name, t in needed.items()]
    body = onnx.helper.make_graph([node_proto(n) for n in nodes], "folded", [], outputs, weights)
    imports = [onnx.helper.make_opsetid(d.domain, d.version) for d in graph.import_domains or []]
    imports = imports or [onnx.helper.make_opsetid("", graph.opset)]
    return onnx.helper.make_model(body, opset_imports=imports, ir_version=10)


def _array(tensor: Tensor) -> NDArray[Any]:
    array = value(tensor)
    if array is None:
        raise ModelError(f"constant {tensor.name} has no value")
    return array
