# SPDX-License-Identifier: Apache-2.0
"""Spatial size of the map that every activation represents, tokens included."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import numpy as np

from qhyvit_onnx.graph import Node, Tensor, operand, value
from qhyvit_onnx.passes._bridges.anchors import RESIZING, WINDOWS
from qhyvit_onnx.passes._bridges.attentions import Attention, Crossing
from qhyvit_onnx.passes._bridges.streams import Streams

UNKNOWN = "?"


class Free(NamedTuple):
    """An extent that is free: a dim of the input times a factor, up to rounding."""

    dim: str
    factor: Fraction

    def __str__(self) -> str:
        """Return the dim with the factor: ``height/8``."""
        over = f"/{self.factor.denominator}" if self.factor.denominator > 1 else ""
        times = f"{self.factor.numerator}*" if self.factor.numerator > 1 else ""
        return f"{times}{self.dim}{over}"


Extent: TypeAlias = int | Free
Size: TypeAlias = tuple[Extent, ...]


def shown(size: Size | None) -> str:
    """Return ``32x32``; free extents by their name, ``?`` for a size that is not known."""
    return "x".join(map(str, size)) if size else UNKNOWN


class Sizes:
    """The size of every activation.

    Windows with more than one position, strides and resizing set it; everything else hands it on:
    to tokens, and from the query to the result of an attention. Where streams join, the newest
    counts.
    """

    def __init__(self, streams: Streams, attentions: Sequence[Attention]) -> None:
        """Walk the graph once, downwards."""
        self._streams = streams
        self._known: dict[int, Size] = {}
        asked = [item for item in attentions if item.crossing is Crossing.IN]
        self._asked = {place for item in asked for place in item.products}
        for place, node in enumerate(streams.ancestry.nodes):
            size = self._of_node(place, node) if streams.ancestry.inputs[place] else None
            if size is not None:
                self._known.update((id(out), size) for out in node.outputs)

    def of(self, tensor: Tensor) -> Size | None:
        """Return the size of ``tensor``; None before the first map."""
        return self._known.get(id(tensor))

    def _of_node(self, place: int, node: Node) -> Size | None:
        inherited = self._inherited(place)
        if node.op in WINDOWS and (inherited is None or _resamples(node)):
            return self._written(node, _steps(node))
        if node.op in RESIZING:
            return self._written(node, _scales(node))
        if node.op == "Slice" and inherited is not None:
            return _thinned(node, inherited)
        return inherited

    def _written(self, node: Node, factors: Sequence[Fraction]) -> Size | None:
        """Return what a window or a Resize writes: numbers where the shape has them."""
        shape = list(node.outputs[0].shape or ())[2:] or [None] * len(factors)
        if len(shape) != len(factors):
            return None
        return tuple(
            dim if isinstance(dim, int) else _scaled(extent, factor)
            for dim, extent, factor in zip(
                shape, self._read(node, len(shape)), factors, strict=True
            )
        )

    def _read(self, node: Node, rank: int) -> Size:
        """Return the size of the map that a window or a Resize reads."""
        known = self.of(node.inputs[0])
        shape = list(node.inputs[0].shape or ())[2:] or [None] * rank
        if known is None or len(known) != rank:
            names = (dim if isinstance(dim, str) else UNKNOWN for dim in shape)
            known = tuple(Free(name, Fraction(1)) for name in names)
        pairs = zip(shape, known, strict=True)
        return tuple(dim if isinstance(dim, int) else extent for dim, extent in pairs)

    def _inherited(self, place: int) -> Size | None:
        streams = self._streams
        tensors = streams.carried[place]
        if streams.anchors.everywhere >> place & 1:
            # tokens that ask features stand for the map they look at, not the one they looked at
            told = [t for t in tensors if streams.is_feature(t)] if place in self._asked else []
            return next((size for t in told or tensors if (size := self.of(t))), None)
        newest = sorted(tensors, key=streams.ancestry.source, reverse=True)
        return next((size for tensor in newest if (size := self.of(tensor))), None)


def _kernel(node: Node) -> list[int]:
    return list(node.attrs.get("kernel_shape") or list(node.inputs[1].shape or ())[2:])


def _resamples(node: Node) -> bool:
    return any(size != 1 for size in (*_kernel(node), *(node.attrs.get("strides") or ())))


def _steps(node: Node) -> list[Fraction]:
    """Return the factor of every axis of a window."""
    strides = [Fraction(step) for step in node.attrs.get("strides") or [1] * len(_kernel(node))]
    return strides if node.op == "ConvTranspose" else [1 / step for step in strides]


def _scales(node: Node) -> list[Fraction]:
    """Return the factor of every spatial axis of a Resize, ones where it is computed."""
    given = operand(node, 1 if node.op == "Upsample" else 2)
    array = None if given is None else value(given)
    if array is None or not array.size:
        return [Fraction(1)] * (len(node.outputs[0].shape or ()) - 2)
    return [Fraction(float(scale)).limit_denominator(64) for scale in array[2:]]


def _scaled(extent: Extent, factor: Fraction) -> Extent:
    if isinstance(extent, Free):
        return Free(extent.dim, extent.factor * factor)
    return Free(UNKNOWN, factor)


def _thinned(node: Node, size: Size) -> Size:
    """Return what is left of ``size`` when a Slice keeps every second position of the map."""
    given = operand(node, 4)
    steps = None if given is None else value(given)
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if steps is None or not np.any(np.abs(steps) > 1) or before is None or after is None:
        return size
    width = len(size)
    for axis in range(len(before) - width + 1):
        kept = after[axis : axis + width]
        if tuple(before[axis : axis + width]) == size and all(isinstance(dim, int) for dim in kept):
            return tuple(kept)
    return size
