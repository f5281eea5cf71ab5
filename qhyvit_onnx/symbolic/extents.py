# SPDX-License-Identifier: Apache-2.0
"""Output shapes of single nodes on free dims, where onnx only says that a dim is unknown.

A rule returns the shape of the first output, None in the place of a dim that it cannot say.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import sympy

from qhyvit_onnx.symbolic.call import Call, Unsure
from qhyvit_onnx.symbolic.dims import Dim, Shape, is_number, plain, quotient, settled
from qhyvit_onnx.symbolic.ranges import length

Extent: TypeAlias = Sequence[Dim | None]


def extent(call: Call) -> Extent | None:
    """Return the shape of the first output; None where there is no rule or nothing to add."""
    rule = RULES.get(call.node.op)
    if rule is None or all(s is None or all(map(is_number, s)) for s in call.shapes):
        return None
    try:
        return rule(call)
    except (Unsure, ValueError, IndexError):
        return None


def _source(call: Call) -> Shape:
    shape = call.shapes[0]
    if shape is None:
        raise Unsure
    return shape


def _elements(call: Call, index: int, name: str = "") -> list[Dim] | None:
    """Return an operand of integers, or the attribute that older opsets have for it."""
    if name in call.node.attrs:
        return list(call.node.attrs[name])
    if index >= len(call.args) or not call.node.inputs[index].name:
        return None
    return [plain(item) for item in call.arg(index).reshape(-1).tolist()]


def _needed(call: Call, index: int, name: str = "") -> list[Dim]:
    found = _elements(call, index, name)
    if found is None:
        raise Unsure
    return found


def _concat(call: Call) -> Extent:
    shape: list[Dim | None] = list(_source(call))
    axis, total = call.attr("axis"), 0
    for part in call.shapes:
        if part is None:
            raise Unsure
        total = total + part[axis]
    shape[axis] = settled(total)
    return shape


def _slice(call: Call) -> Extent:
    source = _source(call)
    shape: list[Dim | None] = list(source)
    starts, ends = _needed(call, 1, "starts"), _needed(call, 2, "ends")
    axes = _elements(call, 3, "axes") or list(range(len(starts)))
    steps = _elements(call, 4, "steps") or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        shape[axis] = length(start, end, step, source[axis]) if is_number(step) else None
    return shape


def _pad(call: Call) -> Extent:
    shape: list[Dim | None] = list(_source(call))
    pads = _needed(call, 1, "pads")
    axes = _elements(call, 3) or list(range(len(shape)))
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        shape[axis] = settled(shape[axis] + before + after)
    return shape


def _tile(call: Call) -> Extent:
    return [settled(a * b) for a, b in zip(_source(call), _needed(call, 1), strict=True)]


def _split(call: Call) -> Extent:
    shape: list[Dim | None] = list(_source(call))
    axis, sizes = call.attr("axis", 0), _elements(call, 1, "split")
    shape[axis] = sizes[0] if sizes else quotient(shape[axis], len(call.node.outputs))
    return shape


def _depth_to_space(call: Call) -> Extent:
    (n, c, h, w), block = _source(call), call.attr("blocksize")
    return n, quotient(c, block * block), settled(h * block), settled(w * block)


def _space_to_depth(call: Call) -> Extent:
    (n, c, h, w), block = _source(call), call.attr("blocksize")
    return n, settled(c * block * block), quotient(h, block), quotient(w, block)


def _resize(call: Call) -> Extent:
    sizes = _elements(call, 3)
    if sizes is not None and "axes" not in call.node.attrs:
        return sizes
    scales = call.arg(2).reshape(-1).tolist()
    pairs = zip(_source(call), scales, strict=True)
    return [settled(d * int(scale)) if scale == int(scale) else None for d, scale in pairs]


def _conv(call: Call) -> Extent:
    weight = call.shapes[1]
    if weight is None:
        raise Unsure
    return _windows(call, weight[0], weight[2:])


def _pool(call: Call) -> Extent:
    if call.attr("ceil_mode", 0):
        raise Unsure
    return _windows(call, _source(call)[1], call.attr("kernel_shape"))


def _windows(call: Call, channels: Dim, kernel: Sequence[Dim]) -> Extent:
    """Return (N, channels, *spatial): floor((size + pads - reach) / stride) + 1 windows.

    Source:
        ONNX Conv-11 and AveragePool-11; reach = dilation * (kernel - 1) + 1; with auto_pad SAME,
        ceil(size / stride).
    """
    n, _, *spatial = _source(call)
    rank = len(spatial)
    pads, auto = call.attr("pads") or [0] * 2 * rank, call.attr("auto_pad", "NOTSET")
    strides, dilations = call.attr("strides") or [1] * rank, call.attr("dilations") or [1] * rank
    found: list[Dim | None] = [n, channels]
    for axis, size in enumerate(spatial):
        stride = strides[axis]
        if auto in {"SAME_UPPER", "SAME_LOWER"}:
            found.append(_floor(size + stride - 1, stride))
            continue
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        room = size + pads[axis] + pads[axis + rank] - reach
        found.append(settled(_floor(room, stride) + 1))
    return found


def _floor(a: Dim, b: int) -> Dim:
    return plain(sympy.floor(sympy.sympify(a) / b))


RULES: Mapping[str, Callable[[Call], Extent]] = {
    "Concat": _concat,
    "Slice": _slice,
    "Pad": _pad,
    "Tile": _tile,
    "Split": _split,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": _resize,
    "Conv": _conv,
    "AveragePool": _pool,
    "MaxPool": _pool,
}
