# SPDX-License-Identifier: Apache-2.0
"""Where channels begin and end: linear layers, and the constants of norms."""

import numpy as np

from qhyvit_onnx.graph import Node, Tensor, is_constant, operand, sole_consumer
from qhyvit_onnx.kernels.norms import channels
from qhyvit_onnx.passes._folding.flow import Floats, Source
from qhyvit_onnx.passes._folding.products import product
from qhyvit_onnx.passes._folding.trace import Trace
from qhyvit_onnx.passes._layers import host_at, layer_of, output_axis
from qhyvit_onnx.passes._readers import layer_reading
from qhyvit_onnx.pattern import Miss


def linear(trace: Trace, node: Node) -> None:
    """Let a layer give back what its inputs were divided by, and divide its outputs."""
    host = host_at(trace.graph, node)
    if isinstance(host, Miss):
        two = node.op == "MatMul" and not any(is_constant(tensor) for tensor in node.inputs)
        (product if two else Trace.block)(trace, node)
        return
    layer = layer_of(host)
    if isinstance(layer, Miss):
        trace.block(node)
        return
    _read(trace, node)
    if host.bias_node is not None:
        trace.done.add(id(host.bias_node))
    axis = output_axis(node)
    ids = None if axis is None else trace.source(host.output, axis, channels(layer))
    if ids is not None and axis is not None:
        trace.flow.sources.append(Source(host.output, ids, axis, layer=host))


def _read(trace: Trace, node: Node) -> None:
    tensor = node.inputs[0]
    if (ids := trace.ids(tensor)) is None:
        return
    reader = layer_reading(trace.graph, node, tensor, ids)
    if isinstance(reader, Miss):
        trace.flow.block(ids)
        return
    trace.flow.readers.append((tensor.name, reader))
    if reader.pads:
        trace.flow.pin(ids)


def layer_norm(trace: Trace, node: Node) -> None:
    """Let a LayerNormalization over the last axis divide its outputs."""
    trace.block(node)
    scale, offset, out = operand(node, 1), operand(node, 2), node.outputs[0]
    rank = len(out.shape or ())
    last = rank > 0 and node.attrs.get("axis", -1) in (-1, rank - 1)
    held = [tensor for tensor in (scale, offset) if tensor is not None]
    if scale is None or not last or not all(map(is_constant, held)):
        return
    ids = trace.source(out, rank - 1, int(np.prod(scale.shape)))
    if ids is not None:
        trace.flow.sources.append(Source(out, ids, rank - 1, scale=node, offset=node))


def affine(trace: Trace, node: Node, factor: Floats) -> None:
    """Let a constant Mul, and the Add behind it, divide what no layer made.

    One number for all channels becomes one number for each; which axis they lie on is what readers
    of such tensors agree on.
    """
    add = sole_consumer(trace.graph, node.outputs[0])
    if add is not None and (add.op != "Add" or not any(map(is_constant, add.inputs))):
        add = None
    out = (add or node).outputs[0]
    axis = None if factor.size == 1 and id(node) in trace.spelled else _channel_axis(out, factor)
    count = None if axis is None else (out.shape or ())[axis]
    if axis is None or not isinstance(count, int):
        return
    ids = trace.source(out, axis, count)
    if ids is None:
        return
    if add is None:
        trace.flow.pin(ids)
    else:
        trace.done.add(id(add))
    trace.flow.sources.append(Source(out, ids, axis, scale=node, offset=add))


def _channel_axis(out: Tensor, factor: Floats) -> int | None:
    """Return where the channels of ``out`` lie: along ``factor``, else of a map or of tokens."""
    rank = len(out.shape or ())
    wide = [rank - factor.ndim + at for at, size in enumerate(factor.shape) if size != 1]
    if not wide and rank > 2:
        return 1 if rank == 4 else rank - 1
    return wide[0] if len(wide) == 1 and wide[0] > 0 else None
