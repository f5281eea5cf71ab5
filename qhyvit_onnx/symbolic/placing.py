# SPDX-License-Identifier: Apache-2.0
"""Shape arithmetic that moves elements: rules for Shape, Gather, Slice, Concat, reductions."""

from collections.abc import Mapping

import numpy as np

from qhyvit_onnx.symbolic.call import LARGEST, Call, Rule, Unsure, Value, whole
from qhyvit_onnx.symbolic.dims import count


def _shape(call: Call) -> Value:
    shape = call.shapes[0]
    if shape is None:
        raise Unsure
    dims: Value = np.array(shape[call.attr("start", 0) : call.attr("end")], dtype=object)
    return dims


def _size(call: Call) -> Value:
    if call.shapes[0] is None:
        raise Unsure
    return np.array(count(call.shapes[0]), dtype=object)


def _gather(call: Call) -> Value:
    indices = call.arg(1)
    if indices.dtype == object:
        raise Unsure
    return np.take(call.arg(0), indices, axis=call.attr("axis", 0))


def _slice(call: Call) -> Value:
    data, starts, ends = call.arg(0), call.ints(1), call.ints(2)
    if starts is None or ends is None:
        raise Unsure
    axes = call.ints(3) or list(range(len(starts)))
    steps = call.ints(4) or [1] * len(starts)
    window = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        window[axis] = slice(start, end, step)
    return data[tuple(window)]


def _concat(call: Call) -> Value:
    parts = [call.arg(index) for index in range(len(call.args))]
    return np.concatenate(parts, axis=call.attr("axis"))


def _squeeze(call: Call) -> Value:
    axes = call.axes()
    return np.squeeze(call.arg(0), axis=None if axes is None else tuple(axes))


def _unsqueeze(call: Call) -> Value:
    return np.expand_dims(call.arg(0), tuple(call.axes() or ()))


def _reshape(call: Call) -> Value:
    data, target = call.arg(0), call.ints(1) or []
    if not call.attr("allowzero", 0):
        target = [data.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return data.reshape(target)


def _reduce(call: Call) -> Value:
    data, axes = call.arg(0), call.axes()
    everything = not axes and not call.attr("noop_with_empty_axes", 0)
    over = tuple(range(data.ndim)) if everything else tuple(axes or ())
    if data.dtype == object:
        data = np.asarray(np.frompyfunc(whole, 1, 1)(data), dtype=object)
    keep = bool(call.attr("keepdims", 1))
    if call.node.op == "ReduceProd":
        return np.asarray(np.prod(data, axis=over, keepdims=keep))
    return np.asarray(np.sum(data, axis=over, keepdims=keep))


def _range(call: Call) -> Value:
    start, limit, step = (call.arg(index) for index in range(3))
    if any(arg.dtype == object for arg in (start, limit, step)) or (limit - start) / step > LARGEST:
        raise Unsure
    return np.arange(start.item(), limit.item(), step.item())


def _where(call: Call) -> Value:
    choice = call.arg(0)
    if choice.dtype == object:
        raise Unsure
    return np.where(choice, call.arg(1), call.arg(2))


def _filled(call: Call) -> Value:
    shape, given = call.ints(0) or [], call.attr("value")
    if np.prod(shape, dtype=float) > LARGEST:
        raise Unsure
    return np.full(shape, 0.0 if given is None else given.values.reshape(-1)[0])


def _expand(call: Call) -> Value:
    data, shape = call.arg(0), tuple(call.ints(1) or ())
    if np.prod(shape, dtype=float) > LARGEST:
        raise Unsure
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, shape))


PLACING: Mapping[str, Rule] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": lambda call: call.arg(0),
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "ReduceProd": _reduce,
    "ReduceSum": _reduce,
    "Range": _range,
    "Where": _where,
    "ConstantOfShape": _filled,
    "Expand": _expand,
}
