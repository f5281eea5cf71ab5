# SPDX-License-Identifier: Apache-2.0
"""Channels through data movement, by the index maps that ``layout`` proved."""

import functools
from collections.abc import Iterator

import numpy as np

from qhyvit_onnx.graph import (
    Node,
    Tensor,
    is_constant,
    operand,
    producer,
    scalar,
    sole_consumer,
    value,
)
from qhyvit_onnx.passes._folding.flow import Source
from qhyvit_onnx.passes._folding.trace import Trace
from qhyvit_onnx.passes._readers import FOREIGN, Ids, Placed, moved_on


def move(trace: Trace, node: Node) -> None:
    """Give the outputs of a movement node the channels that arrive there."""
    found: dict[str, list[Placed]] = {}
    for tensor in {tensor.name: tensor for tensor in node.inputs}.values():
        ids = trace.ids(tensor)
        placed = trace.placed.get(tensor.name, None if ids is None else Placed(ids))
        if placed is None:
            continue
        arriving = list(moved_on(node, tensor, placed, trace.moves))
        if not arriving:  # read for something else: an index
            trace.flow.block(placed.origin)
        for out, after in arriving:
            padded = _pad(trace, node, placed) if node.op == "Pad" else None
            found.setdefault(out.name, []).append(padded or after)
    for out in node.outputs:
        trace.placed.update(_arrive(trace, out, found.get(out.name, [])))
        if out.name not in trace.placed and node.op == "Reshape":
            _bare(trace, node)


def _arrive(trace: Trace, out: Tensor, parts: list[Placed]) -> Iterator[tuple[str, Placed]]:
    """Give ``out`` the channels of its parts; yield them as long as they may move on."""
    known = [part.ids() for part in parts]
    if len(parts) == 1:
        yield out.name, parts[0]
    elif any(ids is None for ids in known):
        for part in parts:
            trace.flow.block(part.origin)
        return
    merged = [ids for ids in known if ids is not None]
    if merged:
        trace.give(out, functools.reduce(_merged, merged))


def _merged(first: Ids, second: Ids) -> Ids:
    """Return the channels of two parts of one tensor."""
    return np.where(first == FOREIGN, second, first)


def _pad(trace: Trace, node: Node, placed: Placed) -> Placed | None:
    """Zeros around stay zeros when scaled, any other number does not; copies are what they are.

    Returns:
        The channels, when what is put around them may count as positions of theirs.

    """
    if node.attrs.get("mode", "constant") != "constant":
        return None
    trace.flow.pin(placed.origin)
    given, ids = operand(node, 2), placed.ids()
    if given is not None and scalar(given) != 0.0:
        trace.flow.fix(placed.origin)
    if ids is None or any(ids.shape[axis] > 1 for axis in _padded(node, ids.ndim)):
        return None
    return Placed(ids)


def _padded(node: Node, rank: int) -> list[int]:
    """Return the axes that get longer or shorter; all of them where that is computed."""
    amounts, given = value(node.inputs[1]), operand(node, 3)
    axes = np.arange(rank) if given is None else value(given)
    if amounts is None or axes is None:
        return list(range(rank))
    moved = np.any(amounts.reshape(2, -1) != 0, axis=0)
    return [int(axis) % rank for axis in axes[moved].tolist()]


def _bare(trace: Trace, node: Node) -> None:
    """Let what leaves a GroupNorm of one group be scaled, unless a Mul does that already."""
    out, norm = node.outputs[0], producer(node.inputs[0])
    scale = operand(norm, 1) if norm is not None and norm.op == "InstanceNormalization" else None
    if scale is None or not is_constant(scale) or list(scale.shape) != [1]:
        return
    after = sole_consumer(trace.graph, out)
    if after is not None and after.op == "Mul" and any(map(is_constant, after.inputs)):
        return
    shape = list(out.shape or [])
    if len(shape) > 1 and isinstance(shape[1], int):
        ids = trace.source(out, 1, shape[1])
        if ids is not None:
            trace.flow.sources.append(Source(out, ids, 1))
