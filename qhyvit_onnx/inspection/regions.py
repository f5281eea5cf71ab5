# SPDX-License-Identifier: Apache-2.0
"""What enters and leaves every region, and how much is done in it."""

from collections.abc import Iterable, Iterator, Sequence

from qhyvit_onnx.facts import Region
from qhyvit_onnx.graph import Node, Tensor, is_absent, is_constant, is_output, producer
from qhyvit_onnx.inspection.map import Map
from qhyvit_onnx.inspection.records import Dims, RegionView
from qhyvit_onnx.layout.channels import FIRST, LAST
from qhyvit_onnx.symbolic.dims import Shape, count, is_number, shown
from qhyvit_onnx.work import is_layer, is_product


def region_views(seen: Map) -> tuple[RegionView, ...]:
    """Return every region, in the order in which data reaches them."""
    return tuple(_region(seen, region, seen.nodes(region.nodes)) for region in seen.regions)


def _region(seen: Map, region: Region, nodes: Sequence[Node]) -> RegionView:
    entering, leaving = _largest(seen, _entering(nodes)), _largest(seen, _leaving(seen, nodes))
    return RegionView(
        side=str(region.side),
        size=region.size,
        nodes=region.nodes,
        layers=sum(map(is_layer, nodes)),
        products=sum(map(is_product, nodes)),
        macs=seen.work(nodes),
        shape_in=_dims(seen, entering),
        shape_out=_dims(seen, leaving),
        channels_in=_channels(seen, entering),
        channels_out=_channels(seen, leaving),
    )


def _entering(nodes: Sequence[Node]) -> Iterator[Tensor]:
    """Yield what ``nodes`` read and do not write."""
    written = {id(tensor) for node in nodes for tensor in node.outputs}
    for tensor in (tensor for node in nodes for tensor in node.inputs):
        if id(tensor) not in written and not is_constant(tensor) and not is_absent(tensor):
            yield tensor


def _leaving(seen: Map, nodes: Sequence[Node]) -> Iterator[Tensor]:
    """Yield what ``nodes`` write and others read, or the user gets."""
    mine = {id(node) for node in nodes}
    for tensor in (tensor for node in nodes for tensor in node.outputs):
        read = any(id(reader) not in mine for reader in tensor.outputs)
        if read or is_output(seen.graph, tensor):
            yield tensor


def _largest(seen: Map, tensors: Iterable[Tensor]) -> Tensor | None:
    """Return the largest tensor, of equal ones the first; those with channels come first."""
    known = [tensor for tensor in tensors if tensor.name in seen.shapes]
    told = [tensor for tensor in known if _channels(seen, tensor) is not None]
    sizes = {tensor.name: _elements(seen.shapes[tensor.name]) for tensor in known}
    return max(told or known, key=lambda tensor: sizes[tensor.name], default=None)


def _elements(shape: Shape) -> int:
    """Return the product of the dims that are numbers."""
    return int(count(tuple(filter(is_number, shape))))


def _dims(seen: Map, tensor: Tensor | None) -> Dims | None:
    if tensor is None:
        return None
    return tuple("?" if (dim := shown(d)) is None else dim for d in seen.shapes[tensor.name])


def _channels(seen: Map, tensor: Tensor | None) -> int | None:
    """Return how many channels ``tensor`` has; for an input, by the op that reads it.

    What a product of attention writes, (N, heads, L, d), has those of all heads.
    """
    if tensor is None:
        return None
    axis, shape, writer = seen.channels.get(tensor.name), seen.shapes[tensor.name], producer(tensor)
    if axis is None and writer is None:
        ops = {reader.op for reader in tensor.outputs}
        axis = 1 if ops & FIRST else len(shape) - 1 if ops & LAST else None
    if axis is None or not is_number(shape[axis]):
        return None
    heads = shape[1] if writer is not None and is_product(writer) and len(shape) == 4 else 1
    return int(shape[axis] * heads) if is_number(heads) else None
