# SPDX-License-Identifier: Apache-2.0
"""Joins the channels of a graph with what calibration saw: the problem that ``choice`` solves."""

from collections.abc import Iterator, Mapping

import numpy as np

from qhyvit_onnx.graph import Graph, Tensor, producer
from qhyvit_onnx.kernels.equalize import Moments, weight_of
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.passes._folding.classes import Grid, Pairing, Problem, Reading
from qhyvit_onnx.passes._folding.flow import Flow
from qhyvit_onnx.passes._layers import layer_of
from qhyvit_onnx.passes._readers import FOREIGN, Ids, Reader
from qhyvit_onnx.pattern import Miss
from qhyvit_onnx.units import moves

Seen = Mapping[str, TensorStats]


def pose(graph: Graph, flow: Flow, stats: Seen, max_growth: float) -> Problem:
    """Return the problem: tensors with a grid, and what reads them."""
    tensors = graph.tensors()
    seen = _moments(tensors, flow, stats)
    known = np.isfinite(seen.low)
    grids = {grid.name: grid for grid in _grids(tensors, flow, stats, known)}
    readings = []
    for tensor, reader in flow.readers:
        name = _owner(tensors[tensor], flow).name
        if name in grids and known[reader.ids].all():
            weight = weight_of(*_outputs_first(reader), _groups(reader))
            readings.append(Reading(grids[name], weight))
        else:
            flow.block(reader.ids)  # what a fold does to this layer could not be judged
    pairings = list(_pairings(flow, grids, known))
    return Problem(flow, flow.solved(), seen, tuple(grids.values()), readings, pairings, max_growth)


def _moments(tensors: Mapping[str, Tensor], flow: Flow, stats: Seen) -> Moments:
    """Return what was seen of every channel, first of all where it has a grid of its own.

    What data movement makes of a tensor may hold a channel many times, a few positions each.
    """
    arrays = np.full((4, flow.size + 1), np.nan)
    arrays[:, FOREIGN] = 0.0
    for name in sorted(stats, key=lambda name: _owner(tensors[name], flow) is not tensors[name]):
        ids = _along(flow.ids.get(name), stats[name])
        if ids is None:
            continue
        new = np.isnan(arrays[0, ids])
        arrays[:, np.unique(ids[new])] = _gathered(stats[name], ids, new)
    return Moments(*arrays)


def _gathered(item: TensorStats, ids: Ids, wanted: np.ndarray) -> np.ndarray:
    """Return low, high, mean and square of the distinct channels of ``ids[wanted]``, in order."""
    _, at, count = np.unique(ids[wanted], return_inverse=True, return_counts=True)
    low, high = np.full(count.size, np.inf), np.full(count.size, -np.inf)
    np.minimum.at(low, at, item.channel_low[wanted])
    np.maximum.at(high, at, item.channel_high[wanted])
    sums = (
        np.bincount(at, rows[wanted], count.size)
        for rows in (item.channel_mean, item.channel_square)
    )
    return np.stack([low, high, *(total / count for total in sums)])


def _along(ids: Ids | None, item: TensorStats) -> Ids | None:
    """Return the channels of a tensor along the axis that was watched, if they lie there."""
    if ids is None or len(item.shape) != ids.ndim:
        return None
    axis = item.axis % ids.ndim
    alone = all(size == 1 for at, size in enumerate(ids.shape) if at != axis)
    return ids.reshape(-1) if alone and ids.shape[axis] == item.channel_low.size else None


def _grids(
    tensors: Mapping[str, Tensor], flow: Flow, stats: Seen, known: np.ndarray
) -> Iterator[Grid]:
    """Yield every tensor that gets a grid of its own: what data movement makes of it shares it."""
    for name in stats:
        ids = flow.ids.get(name)
        if ids is None or _owner(tensors[name], flow) is not tensors[name]:
            continue
        held = np.unique(ids[ids != FOREIGN])
        if held.size and known[held].all():
            yield Grid(name, held)


def _owner(tensor: Tensor, flow: Flow) -> Tensor:
    """Return the tensor whose grid ``tensor`` has: its source, as far up as channels are known."""
    while (
        (node := producer(tensor)) is not None and moves(node) and node.inputs[0].name in flow.ids
    ):
        tensor = node.inputs[0]
    return tensor


def _outputs_first(reader: Reader) -> tuple[np.ndarray, Ids]:
    """Return the weight of a reader as (C_out, C_in / groups, *kernel), and its channels."""
    layer = layer_of(reader.host)
    assert not isinstance(layer, Miss), layer
    weight = np.moveaxis(layer.weight, (layer.axis, layer.input_axis), (0, 1))
    return weight, reader.ids


def _groups(reader: Reader) -> int:
    """Return the groups of a convolution; those of a transposed one mix in its weight."""
    node = reader.host.node
    return int(node.attrs.get("group", 1)) if node.op == "Conv" else 1


def _pairings(flow: Flow, grids: Mapping[str, Grid], known: np.ndarray) -> Iterator[Pairing]:
    for product in flow.products:
        left, right = (_owner(tensor, flow).name for tensor in product.node.inputs)
        ids = [side.reshape(-1) for side in np.broadcast_arrays(product.left, product.right)]
        whole = all((side != FOREIGN).all() and known[side].all() for side in ids)
        if left in grids and right in grids and whole:
            yield Pairing(grids[left], grids[right], ids[0], ids[1])
