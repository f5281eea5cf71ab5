# SPDX-License-Identifier: Apache-2.0
"""Channels through ops that work on each of them alone. All scales are positive."""

import numpy as np

from qhyvit_onnx.graph import Node, Tensor, axes_of, is_constant, value
from qhyvit_onnx.passes._folding.flow import Gate, Held
from qhyvit_onnx.passes._folding.layers import affine
from qhyvit_onnx.passes._folding.trace import Trace
from qhyvit_onnx.passes._readers import FOREIGN, Ids, pads


def grid(trace: Trace, node: Node) -> None:
    """Pooling and resize: positions of one channel, with weights that sum to one, or one of them.

    Border pixels that are counted but do not exist have no shift.
    """
    ids = trace.ids(node.inputs[0])
    if ids is None:
        return
    crops = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if crops or any(size != 1 for size in ids.shape[2:]):
        trace.flow.block(ids)
        return
    counted = node.attrs.get("count_include_pad", 0) and pads(node)
    trace.give(node.outputs[0], trace.flow.derive(ids, None if counted else 1.0))


def positive(trace: Trace, node: Node) -> None:
    """Relu and its leaky kin: f(t x) = t f(x) for t > 0; the slope of a PRelu stays what it is."""
    for slope in node.inputs[1:]:
        if (ids := trace.ids(slope)) is not None:
            trace.flow.block(ids)
    ids = trace.ids(node.inputs[0])
    if ids is not None:
        trace.give(node.outputs[0], trace.flow.derive(ids, None))


def reduce(trace: Trace, node: Node) -> None:
    """Mean, maximum or sum over positions."""
    ids, axes = trace.ids(node.inputs[0]), axes_of(node)
    if ids is None:
        return
    if not axes or any(ids.shape[axis] != 1 for axis in axes):
        trace.flow.block(ids)
        return
    kept = ids if node.attrs.get("keepdims", 1) else ids.squeeze(tuple(axes))
    trace.give(node.outputs[0], trace.flow.derive(kept, None if node.op == "ReduceSum" else 1.0))


def add(trace: Trace, node: Node) -> None:
    """Add and Sub: one scale for all, shifts add up."""
    first, second = (trace.ids(tensor) for tensor in node.inputs)
    signs = (1.0, -1.0 if node.op == "Sub" else 1.0)
    if first is not None and second is not None:
        _add_two(trace, node, first, second, signs[1])
        return
    at = 0 if first is not None else 1
    ids, other = first if first is not None else second, node.inputs[1 - at]
    if ids is None:
        return
    if other.shape is None or len(other.shape) > ids.ndim:
        trace.flow.block(ids)
        return
    if is_constant(other):
        trace.flow.constants.append(Held(node, 1 - at, ids))
    else:
        trace.flow.fix(ids)
    trace.give(node.outputs[0], trace.flow.derive(ids, signs[at]))


def _add_two(trace: Trace, node: Node, first: Ids, second: Ids, sign: float) -> None:
    if first.ndim != second.ndim:
        trace.block(node)
        return
    shape = np.broadcast_shapes(first.shape, second.shape)
    sides = [np.broadcast_to(ids, shape) for ids in (first, second)]
    whole = (sides[0] != FOREIGN) & (sides[1] != FOREIGN)
    out = np.where(whole, trace.flow.new(shape), FOREIGN)
    for ids, gain in zip(sides, (1.0, sign), strict=True):
        trace.flow.tie(out, ids, 1)
        trace.flow.add(out, ids, gain)
        trace.flow.pin(np.where(whole, FOREIGN, ids))
    trace.give(node.outputs[0], out)


def multiply(trace: Trace, node: Node) -> None:
    """Mul and Div, by a constant or by another tensor."""
    if is_constant(node.inputs[1]) or (node.op == "Mul" and is_constant(node.inputs[0])):
        _by_constant(trace, node)
    elif node.op == "Mul":
        _gate(trace, node)
    else:
        trace.block(node)


def _by_constant(trace: Trace, node: Node) -> None:
    at = 1 if is_constant(node.inputs[1]) else 0
    ids, held = trace.ids(node.inputs[1 - at]), value(node.inputs[at])
    factor = np.asarray(held, np.float64)
    if ids is None:
        if node.op == "Mul":
            affine(trace, node, factor)
        return
    if factor.ndim > ids.ndim or np.broadcast_shapes(factor.shape, ids.shape) != ids.shape:
        trace.flow.block(ids)
        return
    gain = factor if node.op == "Mul" else 1.0 / np.where(factor == 0.0, np.inf, factor)
    trace.give(node.outputs[0], trace.flow.derive(ids, gain))


def _gate(trace: Trace, node: Node) -> None:
    """Let the scale of the larger operand through, or let a small other one change it."""
    left, right = node.inputs
    tracked = [tensor for tensor in (left, right) if trace.ids(tensor) is not None]
    if left is right or not tracked:
        trace.block(node)
        return
    carrier = max(tracked, key=lambda tensor: sum(dim != 1 for dim in tensor.shape or ()))
    for tensor in tracked:
        if tensor is not carrier:
            trace.flow.block(trace.flow.ids[tensor.name])
    ids = trace.flow.ids[carrier.name]
    other = right if carrier is left else left
    if not _small(other, carrier, ids):
        trace.give(node.outputs[0], trace.flow.derive(ids, None))
        return
    out = np.where(ids == FOREIGN, FOREIGN, trace.flow.new(ids.shape))
    trace.flow.pin(ids)
    trace.flow.pin(out)
    trace.flow.gates.append(Gate(node, 1 if carrier is left else 0, ids, out))
    trace.give(node.outputs[0], out)


def _small(gate: Tensor, carrier: Tensor, ids: Ids) -> bool:
    """Tell whether ``gate`` has all channels but not all positions: it is cheap to scale."""
    shape, large = gate.shape or (), carrier.shape or ()
    if len(shape) != ids.ndim or len(large) != ids.ndim:
        return False
    told = all(size in (1, shape[at]) for at, size in enumerate(ids.shape))
    return told and sum(dim != 1 for dim in shape) < sum(dim != 1 for dim in large)
