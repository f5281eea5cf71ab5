# SPDX-License-Identifier: Apache-2.0
"""What ``onnx.checker`` lets through and this compiler, or onnxruntime, cannot take.

Every function raises ModelError naming the first offender.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from qhyvit_onnx.errors import ModelError

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.ms.internal.nhwc"})
"""Operator domains that stock onnxruntime knows."""

QUANTIZED = re.compile(
    r"(De)?QuantizeLinear|DynamicQuantize\w+|QLinear\w+|QOrdered\w+|(Conv|MatMul)Integer\w*"
    r"|MatMulNBits|MatMulBnb4|GatherBlockQuantized|QGemm|QAttention|QMoE"
    r"|QEmbedLayerNormalization"
)
"""Op types of a model that has been quantized already."""

FLOAT32_ONLY = frozenset({
    TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ,
    TensorProto.FLOAT4E2M1,
})  # fmt: skip
"""Float types other than float32."""

WEIGHTED = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LayerNormalization",
    "InstanceNormalization", "GroupNormalization",
})  # fmt: skip
"""Ops whose constants are weights. Elsewhere an infinity is legal: attention masks, open clips."""

Scope: TypeAlias = tuple[list[onnx.NodeProto], list[TensorProto]]
"""Nodes and initializers of one graph, sub-graph or function."""


def scopes(model: onnx.ModelProto) -> Iterator[Scope]:
    """Yield the main graph, then every sub-graph and function."""
    stack: list[Scope] = [(list(model.graph.node), list(model.graph.initializer))]
    stack.extend((list(function.node), []) for function in model.functions)
    while stack:
        scope = stack.pop(0)
        yield scope
        for attribute in (a for node in scope[0] for a in node.attribute):
            below = [attribute.g] if attribute.HasField("g") else attribute.graphs
            stack.extend((list(graph.node), list(graph.initializer)) for graph in below)


def check_structure(model: onnx.ModelProto) -> None:
    """Check everything that needs no weights."""
    _check_opset(model)
    if not model.HasField("graph"):
        raise ModelError("the model has no graph", hint="export it again")
    if model.graph.sparse_initializer:
        raise ModelError("the model has sparse initializers", hint="export it with dense ones")
    for nodes, tensors in scopes(model):
        _check_names(nodes, tensors)
        _check_ops(nodes, model)
    _check_types(model)
    for info in (*model.graph.input, *model.graph.output):
        if info.type.HasField("tensor_type") and not info.type.tensor_type.HasField("shape"):
            raise ModelError(
                f"{info.name} declares no shape", hint="run onnx.shape_inference on the model"
            )


def _check_opset(model: onnx.ModelProto) -> None:
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if not versions:
        raise ModelError(
            "the model declares no opset of the default domain", hint="export it again"
        )
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= max(versions) <= newest:
        raise ModelError(
            f"the model's opset is {max(versions)}, known are 1 to {newest}",
            hint="export it with opset 17, or update onnx",
        )


def _check_names(nodes: Iterable[onnx.NodeProto], tensors: Iterable[TensorProto]) -> None:
    """Refuse names that are not UTF-8 (protobuf hands them out as bytes) and names used twice."""
    nodes = list(nodes)
    every = [n for node in nodes for n in (node.name, *node.input, *node.output)]
    for name in (*every, *(tensor.name for tensor in tensors)):
        if isinstance(name, bytes):
            raise ModelError(f"name {name!r} is not UTF-8", hint="rename it")
    used = Counter(node.name for node in nodes if node.name)
    for name, uses in used.most_common(1):
        if uses > 1:
            raise ModelError(f"{uses} nodes have the same name", node=name, hint="rename them")


def _check_ops(nodes: Iterable[onnx.NodeProto], model: onnx.ModelProto) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    for node in nodes:
        where = node.name or next(iter(node.output), "")
        if (node.domain, node.op_type) in local:
            continue
        if node.domain not in DOMAINS:
            raise ModelError(
                f"op {node.op_type} of domain {node.domain} is unknown to onnxruntime",
                node=where,
                hint="export the model without custom ops",
            )
        if QUANTIZED.fullmatch(node.op_type):
            raise ModelError(
                f"the model is quantized already: it has {node.op_type}",
                node=where,
                hint="give the float32 model",
            )


def _check_types(model: onnx.ModelProto) -> None:
    """Refuse inputs, outputs and weights in another float type; lone numbers are let through."""
    infos = [
        (i.name, i.type.tensor_type.elem_type) for i in (*model.graph.input, *model.graph.output)
    ]
    weights = [(name, t.data_type) for name, t in constants(model) if np.prod(t.dims) > 1]
    for name, kind in infos + weights:
        if kind in FLOAT32_ONLY:
            raise ModelError(
                f"tensor {name} is {TensorProto.DataType.Name(kind).lower()}",
                hint="give a float32 model: other float types are not supported yet",
            )


def constants(model: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Yield (name, tensor) of every initializer and Constant node, sub-graphs included."""
    for nodes, tensors in scopes(model):
        yield from ((tensor.name, tensor) for tensor in tensors)
        for node in nodes:
            if node.op_type == "Constant":
                values = (a.t for a in node.attribute if a.name == "value")
                yield from ((node.output[0], tensor) for tensor in values)


def check_values(model: onnx.ModelProto) -> None:
    """Refuse NaN in any constant, and infinities in weights."""
    weights = {
        name
        for nodes, _ in scopes(model)
        for node in nodes
        if node.op_type in WEIGHTED
        for name in node.input
    }
    for name, tensor in constants(model):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(tensor)
        if np.isfinite(array).all():
            continue
        if np.isnan(array).any() or name in weights:
            kind = "NaN" if np.isnan(array).any() else "Inf"
            raise ModelError(
                f"tensor {name} holds {kind}", hint="the weights are damaged: export again"
            )
