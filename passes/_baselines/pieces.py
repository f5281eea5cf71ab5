# SPDX-License-Identifier: Apache-2.0
"""What a search turns: layers and products with their operands, and the tensors these read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.graph import Tensor, value
from qhyvit_onnx.grid import Grid, WeightGrid
from qhyvit_onnx.kernels.evidence import Evidence
from qhyvit_onnx.kernels.layer_search import Floats, Scene, rounded
from qhyvit_onnx.methods import Metric
from qhyvit_onnx.passes._baselines.weights import columns_of
from qhyvit_onnx.passes._matrices import weight_of
from qhyvit_onnx.simulated import ChannelGrid, Simulated
from qhyvit_onnx.units import CONVOLUTIONS, LAYERS, Kind, Unit, source_of

AnyGrid: TypeAlias = Grid | Simulated


@dataclass(eq=False)
class Piece:
    """A layer or product, and its operands as they are rounded now."""

    unit: Unit
    scene: Scene
    operands: list[Floats]
    weight: WeightGrid | None = None
    """Chosen so far; None for a product."""

    def cost(self, metric: Metric, side: int, operand: Floats) -> float:
        """Return what the output costs with ``operand`` on one side, the other as it is now."""
        left, right = (operand if i == side else held for i, held in enumerate(self.operands))
        if metric is Metric.COSINE:
            return self.scene.angle(left, right)
        return float(self.scene.squared(left, right).sum())


@dataclass(frozen=True, eq=False)
class Reading:
    """One operand of a piece that is an activation.

    Shapes:
        marks: the channel of each element, or for a product the head, broadcastable against the
        operand.
    """

    piece: Piece
    side: int
    tensor: Tensor
    marks: NDArray[np.int64]

    @property
    def exact(self) -> Floats:
        """The operand in floats."""
        return self.piece.scene.right if self.side else self.piece.scene.left

    @property
    def channels(self) -> int:
        """How many channels, or heads that were drawn, there are."""
        return int(self.marks.max()) + 1

    def rounded(self, grid: AnyGrid) -> Floats:
        """Return the operand on ``grid``."""
        if not isinstance(grid, ChannelGrid):
            return grid.fake(self.exact).astype(np.float32)
        if grid.scales.size == 1:
            return rounded(self.exact, grid.scales[0], grid.zero_points[0], grid.top)
        scale, zero = grid.scales[self.marks], grid.zero_points[self.marks]
        return rounded(self.exact, scale, zero, grid.top)

    def extremes(self) -> tuple[Floats, Floats]:
        """Return the least and the largest value of every channel that was drawn, (C,)."""
        low, high = np.full(self.channels, np.inf), np.full(self.channels, -np.inf)
        marks = np.broadcast_to(self.marks, self.exact.shape)
        np.minimum.at(low, marks, self.exact)
        np.maximum.at(high, marks, self.exact)
        seen = np.isfinite(low)
        low, high = np.where(seen, low, low[seen].min()), np.where(seen, high, high[seen].max())
        return low.astype(np.float32), high.astype(np.float32)


@dataclass(eq=False)
class Activation:
    """A tensor that gets one grid, everything that reads it, and what it may be rounded to."""

    key: str
    """Tensor that a simulated grid is for: what is read, or where it comes from."""
    source: Tensor
    readings: list[Reading]
    offers: Sequence[Sequence[AnyGrid]] = ()
    grid: AnyGrid | None = None
    """Chosen so far."""

    @property
    def same(self) -> Tensor | None:
        """The tensor that every reading reads as it is; None when they read different ones."""
        tensors = {reading.tensor.name: reading.tensor for reading in self.readings}
        return next(iter(tensors.values())) if len(tensors) == 1 else None

    @property
    def for_layers(self) -> bool:
        """Whether only layers read it."""
        return all(reading.piece.unit.kind in LAYERS for reading in self.readings)


def pieces_of(units: Sequence[Unit], evidence: Evidence) -> list[Piece]:
    """Return a piece for every layer and product of which there is evidence, in order."""
    found = []
    for unit in units:
        if unit.kind in LAYERS and unit.name in evidence.layers:
            right = columns_of(unit, weight_of(unit))
            bias = None if unit.bias is None else np.asarray(value(unit.bias), np.float32)
            scene = Scene.of_layer(evidence.layers[unit.name], right, bias)
        elif unit.kind is Kind.PRODUCT and unit.name in evidence.products:
            scene = Scene.of_product(evidence.products[unit.name])
        else:
            continue
        found.append(Piece(unit, scene, [scene.left, scene.right]))
    return found


def activations_of(
    pieces: Sequence[Piece], evidence: Evidence, apart: frozenset[Kind]
) -> list[Activation]:
    """Return every activation that a piece reads, in order.

    One for each tensor and what movement makes of it, as these share codes; one for each operand
    of the kinds in ``apart``.
    """
    found: dict[tuple[str, bool], Activation] = {}
    for piece in pieces:
        for reading in _readings(piece, evidence):
            source = source_of(reading.tensor)
            alone = piece.unit.kind in apart and reading.channels > 1
            key = reading.tensor.name if alone else source.name
            item = found.setdefault((key, alone), Activation(key, source, []))
            item.readings.append(reading)
    return list(found.values())


def _readings(piece: Piece, evidence: Evidence) -> Iterator[Reading]:
    unit = piece.unit
    if unit.kind is Kind.PRODUCT:
        heads = evidence.products[unit.name].heads[:, None, None]
        for side, tensor in enumerate(unit.inputs):
            shape = tensor.shape or ()  # of three dims, the first counts samples
            apart = len(shape) > 3 and list(shape)[-3] == heads.max() + 1
            yield Reading(piece, side, tensor, heads if apart else np.zeros_like(heads))
    else:
        yield Reading(piece, 0, unit.inputs[0], _channels(unit, piece.scene))


def _channels(unit: Unit, scene: Scene) -> NDArray[np.int64]:
    """Return which channel of its input a layer reads where, (groups or 1, 1, K)."""
    groups, _, width = scene.left.shape
    if unit.kind not in CONVOLUTIONS:
        return np.arange(width)[None, None, :]
    taps = width // int(unit.weight.shape[1])  # type: ignore[union-attr]
    within = np.arange(width)[None, None, :] // taps
    channels: NDArray[np.int64] = within + np.arange(groups)[:, None, None] * (width // taps)
    return channels
