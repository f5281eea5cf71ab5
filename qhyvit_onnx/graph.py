# SPDX-License-Identifier: Apache-2.0
"""The graph: onnx-graphsurgeon, and the one place that knows its odd corners.

Corners handled here: export drops metadata, doc strings and the IR version; ``Constant.values`` may
be lazy; a tensor that is a graph output has one use more than its consumer list says; names must
stay unique; an optional input that is absent is a Variable without a name.
"""

from collections.abc import Callable, Iterable, Iterator, MutableSequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qhyvit_onnx.errors import PassError

Node: TypeAlias = Any
"""A graphsurgeon Node; the library carries no types."""
Tensor: TypeAlias = Any
"""A graphsurgeon Variable or Constant."""
Graph: TypeAlias = Any
Info: TypeAlias = onnx.ValueInfoProto

MOVEMENT = frozenset({
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Expand",
    "Tile", "DepthToSpace", "SpaceToDepth", "MaxPool",
})  # fmt: skip
"""Ops that only pick and place elements: the grid of the output is the grid of the input."""

RESHAPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Ops that keep the order of the elements: only the shape differs."""

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Ops that multiply by a weight, or by a second activation."""


def import_graph(model: onnx.ModelProto) -> Graph:
    """Return the graph of ``model``; every node gets a unique name."""
    graph = gs.import_onnx(model)
    seen: set[str] = set()
    for index, node in enumerate(graph.nodes):
        if not node.name or node.name in seen:
            node.name = fresh(f"{node.op}_{index}", seen)
        seen.add(node.name)
    return graph


def export_model(graph: Graph, source: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``graph`` as a model with the metadata, doc strings and producer of ``source``."""
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    model.ir_version = max(source.ir_version, _ir_for(model), 4)  # 4: initializers are no inputs
    model.doc_string = source.doc_string
    model.domain, model.model_version = source.domain, source.model_version
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    del model.metadata_props[:]
    model.metadata_props.extend(source.metadata_props)
    model.graph.doc_string = source.graph.doc_string
    for kept, origin in (
        (model.graph.input, source.graph.input),
        (model.graph.output, source.graph.output),
    ):
        _keep_infos(kept, origin)
    return model


def _keep_infos(kept: MutableSequence[Info], origin: MutableSequence[Info]) -> None:
    """Put back the source's value infos: dims, symbols and doc strings as the user wrote them.

    What has become codes stays codes.
    """
    known = {info.name: info for info in origin}
    for info in kept:
        codes = info.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        if info.name in known:
            info.CopyFrom(known[info.name])
            if codes:
                info.type.tensor_type.elem_type = onnx.TensorProto.UINT8


def _ir_for(model: onnx.ModelProto) -> int:
    """Return the lowest IR version that can carry the default-domain opset of ``model``."""
    opset = opset_of(model)
    return int(onnx.helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", min(opset, 21)), 8))


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set, 0 when the model names none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def fresh(name: str, taken: Iterable[str]) -> str:
    """Return ``name``, or ``name_2``, ``name_3`` ... until it is not in ``taken``."""
    taken = taken if isinstance(taken, (set, frozenset, dict)) else set(taken)
    candidate, index = name, 2
    while candidate in taken:
        candidate, index = f"{name}_{index}", index + 1
    return candidate


def is_constant(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` is an initializer."""
    return isinstance(tensor, gs.Constant)


def is_absent(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` stands for an optional input that is not given."""
    return not is_constant(tensor) and tensor.name == ""


def value(tensor: Tensor) -> NDArray[Any] | None:
    """Return the array of an initializer, None for anything computed at run time."""
    return np.asarray(tensor.values) if is_constant(tensor) else None


def scalar(tensor: Tensor) -> float | None:
    """Return the number of a one-element initializer, else None."""
    array = value(tensor)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def operand(node: Node, index: int) -> Tensor | None:
    """Return input ``index`` of ``node``; None when it is absent or beyond the end."""
    if index >= len(node.inputs) or is_absent(node.inputs[index]):
        return None
    return node.inputs[index]


def producer(tensor: Tensor) -> Node | None:
    """Return the node that computes ``tensor``, None for inputs and initializers."""
    return tensor.inputs[0] if tensor.inputs else None


def is_output(graph: Graph, tensor: Tensor) -> bool:
    """Tell whether ``tensor`` is an output of the graph: a use that no consumer list shows."""
    return any(tensor is out for out in graph.outputs)


def uses(graph: Graph, tensor: Tensor) -> int:
    """Return how often ``tensor`` is read, graph outputs included."""
    return len(tensor.outputs) + int(is_output(graph, tensor))


def sole_consumer(graph: Graph, tensor: Tensor) -> Node | None:
    """Return the only reader of ``tensor``; None when it has none, several, or is an output."""
    if len(tensor.outputs) != 1 or is_output(graph, tensor):
        return None
    reader = tensor.outputs[0]  # may sit inside an If or Loop, which is no part of this graph
    return reader if any(reader is node for node in graph.nodes) else None


def axes_of(node: Node) -> list[int] | None:
    """Return the axes of a reduction, attribute or constant input; None when absent or computed."""
    if "axes" in node.attrs:
        return [int(axis) for axis in node.attrs["axes"]]
    given = operand(node, 1)
    array = None if given is None else value(given)
    return None if array is None else [int(axis) for axis in array.reshape(-1)]


def node_proto(node: Node) -> onnx.NodeProto:
    """Return ``node`` as ONNX writes it, for the libraries that judge single nodes."""
    proto: onnx.NodeProto = gs.exporters.onnx_exporter.OnnxExporter.export_node(node)
    return proto


def names(graph: Graph) -> set[str]:
    """Return every tensor and node name of the graph."""
    return set(graph.tensors()) | {node.name for node in graph.nodes}


def variable(
    name: str, like: Tensor | None = None, *, dtype: type | np.dtype[Any] | None = None
) -> Tensor:
    """Return a new variable, with the shape (and dtype) of ``like``."""
    shape = getattr(like, "shape", None)
    return gs.Variable(name, dtype=dtype or getattr(like, "dtype", None), shape=shape)


def constant(name: str, array: NDArray[Any]) -> Tensor:
    """Return a new initializer holding ``array`` (C order: graphsurgeon writes raw bytes)."""
    return gs.Constant(name, np.ascontiguousarray(array).reshape(np.shape(array)))


def make_node(
    op: str,
    name: str,
    inputs: list[Tensor],
    outputs: list[Tensor],
    *,
    attrs: dict[str, Any] | None = None,
    domain: str | None = None,
) -> Node:
    """Return a new node; the caller appends it to ``graph.nodes``."""
    return gs.Node(op, name, attrs=attrs or {}, inputs=inputs, outputs=outputs, domain=domain)


def redirect(graph: Graph, old: Tensor, new: Tensor) -> None:
    """Make every reader of ``old``, graph outputs included, read ``new``.

    A graph output keeps its public name: ``new`` takes it over from ``old``.
    """
    for node in list(old.outputs):
        node.inputs = [new if tensor is old else tensor for tensor in node.inputs]
    if is_output(graph, old):
        if is_output(graph, new) or producer(new) is None:
            raise PassError(f"tensor {new.name} cannot take the place of graph output {old.name}")
        old.name, new.name = f"{old.name}_replaced", old.name
        graph.outputs = [new if out is old else out for out in graph.outputs]


def can_redirect(graph: Graph, old: Tensor, new: Tensor) -> bool:
    """Tell whether ``redirect`` may replace ``old`` by ``new``: public names stay as they are."""
    return not is_output(graph, old) or not (is_output(graph, new) or producer(new) is None)


def bypass(graph: Graph, node: Node) -> bool:
    """Let the readers of ``node`` read its first input, and drop it, unless a name forbids it."""
    old, new = node.outputs[0], node.inputs[0]
    if not can_redirect(graph, old, new):
        return False
    redirect(graph, old, new)
    remove_node(graph, node)
    return True


def remove_node(graph: Graph, node: Node) -> None:
    """Detach ``node``: clean-up then drops it and whatever only it read."""
    node.inputs.clear()
    node.outputs.clear()
    graph.nodes = [other for other in graph.nodes if other is not node]


def cancel_reshapes(graph: Graph, same_shape: Callable[[Tensor, Tensor], bool]) -> int:
    """Let readers go past a chain of reshapes that ends in the shape it began with."""
    edits = 0
    for node in [node for node in graph.nodes if node.op in RESHAPING and node.inputs]:
        old, new = node.outputs[0], walk_up(node.inputs[0], RESHAPING)
        if new is not node.inputs[0] and same_shape(old, new) and can_redirect(graph, old, new):
            redirect(graph, old, new)
            remove_node(graph, node)
            edits += 1
    return edits


def tidy(graph: Graph) -> None:
    """Drop what nothing reads and sort the nodes topologically."""
    graph.cleanup(remove_unused_graph_inputs=False).toposort()


def walk_up(tensor: Tensor, ops: frozenset[str]) -> Tensor:
    """Follow first inputs upwards while the producer's op is in ``ops``; return where it ends."""
    while (node := producer(tensor)) is not None and node.op in ops:
        tensor = node.inputs[0]
    return tensor


def consumers_through(tensor: Tensor, ops: frozenset[str]) -> Iterator[Node]:
    """Yield the readers of ``tensor``, looking through nodes whose op is in ``ops``."""
    for node in tensor.outputs:
        if node.op in ops and node.inputs[0] is tensor:
            for out in node.outputs:
                yield from consumers_through(out, ops)
        else:
            yield node
