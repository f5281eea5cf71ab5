# SPDX-License-Identifier: Apache-2.0
"""The grids that a method tries for an activation: one list for each granularity and scheme."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.methods import Attention, Freedom, Method, OutputSearch, Tails
from qhyvit_onnx.passes._baselines.pieces import Activation, AnyGrid
from qhyvit_onnx.passes._baselines.ranges import (
    channels_about_zero,
    channels_between,
    grid_between,
    symmetric_between,
    unsigned_to,
)
from qhyvit_onnx.passes._baselines.roles import Roles
from qhyvit_onnx.simulated import TwinGrid
from qhyvit_onnx.units import CONVOLUTIONS, Kind, is_softmax

SPLITS = 20
"""Places where the two ranges of a softmax may meet: 1, 1/2, 1/4 and so on."""


@dataclass(frozen=True, slots=True)
class Offering:
    """What decides on the candidates of one method."""

    method: Method
    search: OutputSearch
    stats: Mapping[str, TensorStats]
    roles: Roles
    clipped: frozenset[str]
    """Tensors behind a fused Relu or Clip."""

    def fractions(self) -> NDArray[np.float64]:
        """Return the candidates, as fractions of the scale that just holds the largest value."""
        search = self.search
        return np.linspace(search.lowest, search.highest, search.candidates + 1)

    def offers(self, item: Activation, bits: int) -> list[list[AnyGrid]]:
        """Return lists of grids; in the first one the default is at fraction 1."""
        if self.method.attention is Attention.TWIN and is_softmax(item.source):
            return [_split(bits)]
        if self.method.tails is Tails.TWIN and item.source.name in self.roles.tails:
            return [self._tail(item, bits)]
        if Freedom.HEADS in self.search.freedoms and _headed(item):
            return self._apart(*_head_ends(item), -3, bits)
        found = self._whole(item, bits)
        if Freedom.GRANULARITY in self.search.freedoms and self._channels(item) > 1:
            seen = self.stats[item.same.name]  # type: ignore[union-attr]
            found += self._apart(seen.channel_low, seen.channel_high, seen.axis, bits)
        return found

    def default(self, item: Activation) -> AnyGrid:
        """Return where the search starts: at fraction 1 of the first list."""
        grids = item.offers[0]
        if len(grids) != self.search.candidates + 1:
            return grids[0]
        return grids[int(np.abs(self.fractions() - 1.0).argmin())]

    def _tail(self, item: Activation, bits: int) -> list[AnyGrid]:
        half = 1 << (bits - 1)
        below = -self.roles.tails[item.source.name] / half
        peak = max(_ends(item, self.stats)[1], 1e-6)
        return [TwinGrid(below, f * peak / half, 0.0, bits) for f in self.fractions()]

    def _whole(self, item: Activation, bits: int) -> list[list[AnyGrid]]:
        low, high = _ends(item, self.stats)
        peak = max(-low, high)
        if item.source.name in self.clipped:
            return [[unsigned_to(peak, bits, f) for f in self.fractions()]]
        found: list[list[AnyGrid]] = [[symmetric_between(peak, bits, f) for f in self.fractions()]]
        if Freedom.SCHEME in self.search.freedoms:
            overflow = self.method.overflow
            found.append([grid_between(low, high, bits, overflow, f) for f in self.fractions()])
        return found

    def _apart(
        self, low: NDArray[np.floating], high: NDArray[np.floating], axis: int, bits: int
    ) -> list[list[AnyGrid]]:
        peak = np.maximum(-low, high)
        found: list[list[AnyGrid]] = [
            [channels_about_zero(peak, axis, bits, f) for f in self.fractions()]
        ]
        if Freedom.SCHEME in self.search.freedoms:
            overflow = self.method.overflow
            found.append(
                [
                    channels_between(low, high, axis, bits=bits, overflow=overflow, factor=f)
                    for f in self.fractions()
                ]
            )
        return found

    def _channels(self, item: Activation) -> int:
        """Return how many channels could have a scale of their own; 1 where that has no meaning.

        Layers that read different views of a tensor, or a product, see different channels.
        """
        same = item.same
        if same is None or not item.for_layers or same.name not in self.stats:
            return 1
        axes = {1 if r.piece.unit.kind in CONVOLUTIONS else -1 for r in item.readings}
        if axes != {self.stats[same.name].axis}:
            return 1
        channels = {reading.channels for reading in item.readings}
        width = self.stats[same.name].channel_low.size
        return width if channels == {width} else 1


def _headed(item: Activation) -> bool:
    """Tell whether every reading is an operand of a product with several heads."""
    readings = ((r.piece.unit.kind, r.channels) for r in item.readings)
    return all(kind is Kind.PRODUCT and heads > 1 for kind, heads in readings)


def _head_ends(item: Activation) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the range of every head where evidence was drawn."""
    ends = [reading.extremes() for reading in item.readings]
    return np.min([low for low, _ in ends], axis=0), np.max([high for _, high in ends], axis=0)


def _split(bits: int) -> list[AnyGrid]:
    limit = (1 << (bits - 1)) - 1
    return [TwinGrid(2.0**-i / limit, 1 / limit, 2.0**-i, bits) for i in range(SPLITS)]


def _ends(item: Activation, stats: Mapping[str, TensorStats]) -> tuple[float, float]:
    """Return the range that was seen: of what no statistics are kept, where evidence was drawn."""
    if item.source.name in stats:
        seen = stats[item.source.name]
        return seen.low, seen.high
    values = [reading.exact for reading in item.readings]
    return min(float(x.min()) for x in values), max(float(x.max()) for x in values)
