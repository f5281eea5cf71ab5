# SPDX-License-Identifier: Apache-2.0
"""Where the channels of every tensor come from, and who must agree on their scale and shift.

Each channel of each computed tensor has a number. Rewriting ``x`` as ``t * x' + c`` channel by
channel is free when whoever computes the channel can divide and subtract, and whoever reads it can
multiply and add back. What the graph does in between says how channels depend on each other:

* ties: the scales of two channels are equal, or the reciprocal of each other (queries and keys);
* sums: the shift of a channel is a weighted sum of the shifts of others (residual Adds);
* fixed, pinned: a reader that cannot give back the scale, or the shift.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from qhyvit_onnx.graph import Node, Tensor
from qhyvit_onnx.passes._layers import Host
from qhyvit_onnx.passes._readers import FOREIGN, Ids, Reader

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A tensor whose channels can be divided by anything where they are computed.

    ``layer``: a linear layer. Otherwise ``scale`` and ``offset`` are the nodes whose constants do
    it: both the LayerNormalization, or a Mul and the Add behind it; none at all when a Mul and Add
    would have to be put behind ``tensor``.
    """

    tensor: Tensor
    ids: Ids
    """(C,)"""
    axis: int
    layer: Host | None = None
    scale: Node | None = None
    offset: Node | None = None

    @property
    def takes_nodes(self) -> bool:
        """Whether nothing there has constants yet."""
        return self.layer is None and self.scale is None


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A constant that is added to channels, so that it is divided when they are."""

    node: Node
    index: int
    ids: Ids


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """A small factor of every channel, which can take from one scale to another on its way.

    Shapes: read, written broadcastable against the output of ``node``.
    """

    node: Node
    index: int
    """Which input of the Mul is the factor."""
    read: Ids
    written: Ids


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A sum of products of two tensors over channels both have: queries and keys.

    Shapes: left, right broadcastable against each other; summed over the last axis.
    """

    node: Node
    left: Ids
    right: Ids
    scores: tuple[str, ...]
    """Tensors that change with a shift of ``right``, up to a softmax that undoes it."""


@dataclass
class Flow:
    """Everything known of the channels of one graph."""

    ids: dict[str, Ids] = field(default_factory=dict)
    """By tensor name; a tensor that is not here has no channels that could be folded."""
    sources: list[Source] = field(default_factory=list)
    readers: list[tuple[str, Reader]] = field(default_factory=list)
    """Tensor name, and a layer that reads it."""
    products: list[Product] = field(default_factory=list)
    constants: list[Held] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    size: int = 0
    _ties: list[tuple[Ids, Ids, int]] = field(default_factory=list)
    _sums: list[tuple[Ids, Ids, Floats]] = field(default_factory=list)
    _fixed: list[Ids] = field(default_factory=list)
    _pinned: list[Ids] = field(default_factory=list)

    def new(self, shape: tuple[int, ...]) -> Ids:
        """Return numbers for new channels."""
        count = int(np.prod(shape, dtype=np.int64))
        made = np.arange(self.size, self.size + count, dtype=np.int64).reshape(shape)
        self.size += count
        return made

    def derive(self, ids: Ids, gain: Floats | float | None = 1.0) -> Ids:
        """Return channels of the same scale as ``ids`` that hold other values.

        Their shift is ``gain`` times that of ``ids``; None: neither has one.
        """
        made = np.where(ids == FOREIGN, FOREIGN, self.new(ids.shape))
        self.tie(made, ids, 1)
        if gain is None:
            self.pin(ids)
            self.pin(made)
        else:
            self.add(made, ids, gain)
        return made

    def tie(self, first: Ids, second: Ids, sign: int) -> None:
        """Let the scale of ``first`` be that of ``second``, or its reciprocal (sign -1)."""
        a, b = (side.reshape(-1) for side in np.broadcast_arrays(first, second))
        both = (a != FOREIGN) & (b != FOREIGN)
        self._ties.append((a[both], b[both], sign))
        self.fix(a[(a != FOREIGN) & ~both])
        self.fix(b[(b != FOREIGN) & ~both])

    def add(self, out: Ids, part: Ids, gain: Floats | float) -> None:
        """Let the shift of ``out`` grow by ``gain`` times that of ``part``.

        In the order of the graph: all that ``out`` grows by is told before anything grows by it.
        """
        a, b, g = (x.reshape(-1) for x in np.broadcast_arrays(out, part, gain))
        both = (a != FOREIGN) & (b != FOREIGN)
        self._sums.append((a[both], b[both], g[both].astype(np.float64)))

    def fix(self, ids: Ids) -> None:
        """Forbid a scale."""
        self._fixed.append(ids[ids != FOREIGN].reshape(-1))

    def pin(self, ids: Ids) -> None:
        """Forbid a shift."""
        self._pinned.append(ids[ids != FOREIGN].reshape(-1))

    def block(self, ids: Ids) -> None:
        """Forbid both."""
        self.fix(ids)
        self.pin(ids)

    def solved(self) -> "Freedom":
        """Return which scales and shifts are free, now that everything is known."""
        groups, signs, clash = self._tied()
        stuck = np.zeros(2 * self.size, bool)  # one fixed channel fixes all that are tied to it
        stuck[groups[_joined(self._fixed)]] = True
        stuck[groups[clash]] = True
        pinned = np.zeros(self.size, bool)
        pinned[_joined(self._pinned)] = True
        for out, part, _ in reversed(self._sums):
            np.logical_or.at(pinned, part, pinned[out])
        return Freedom(groups, signs, stuck[groups], pinned)

    def shifts(self, chosen: Floats) -> Floats:
        """Return the shift of every channel, given what the sources subtract (size,)."""
        shift = chosen.copy()
        for out, part, gain in self._sums:
            np.add.at(shift, out, gain * shift[part])
        return shift

    def _tied(self) -> tuple[Ids, NDArray[np.int64], Flags]:
        """Return group and sign of every channel, and which contradict themselves.

        Each channel stands in a graph twice, as its scale and as the reciprocal of it: what is
        connected is equal.
        """
        first = _joined([left for left, _, _ in self._ties])
        second = _joined([right for _, right, _ in self._ties])
        sign = _joined([np.full(tie[0].shape, tie[2], np.int64) for tie in self._ties])
        other = np.where(sign > 0, second, second + self.size)
        mirror = np.where(sign > 0, second + self.size, second)
        rows, columns = np.r_[first, first + self.size], np.r_[other, mirror]
        shape = (2 * self.size, 2 * self.size)
        graph = coo_array((np.ones(rows.size, np.int8), (rows, columns)), shape)
        _, labels = connected_components(graph, directed=False)
        plain, inverse = labels[: self.size], labels[self.size :]
        signs = np.where(plain <= inverse, 1, -1)
        return np.minimum(plain, inverse).astype(np.int64), signs, plain == inverse


@dataclass(frozen=True, slots=True, eq=False)
class Freedom:
    """What may be chosen, channel by channel.

    Shapes: all (size,).
    """

    groups: Ids
    """Channels of one group have one scale, or its reciprocal."""
    signs: NDArray[np.int64]
    fixed: Flags
    pinned: Flags


def _joined(parts: Sequence[Ids]) -> Ids:
    return np.concatenate([np.zeros(0, np.int64), *parts])
