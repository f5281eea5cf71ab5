# SPDX-License-Identifier: Apache-2.0
"""Scales of weights and of activations in turn, each with the others as they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qhyvit_onnx.kernels.layer_search import Floats, column_scales, least, rounded_weight
from qhyvit_onnx.methods import Metric
from qhyvit_onnx.passes._baselines.bridges import BridgeJudge
from qhyvit_onnx.passes._baselines.offers import Offering
from qhyvit_onnx.passes._baselines.pieces import Activation, AnyGrid, Piece
from qhyvit_onnx.passes._baselines.weights import (
    columns_of,
    grid_of,
    peaks_of,
    per_column,
)
from qhyvit_onnx.passes._matrices import limit_of, weight_of
from qhyvit_onnx.units import LAYERS, Unit

STRIDE = 4
"""Inside of a bridge every fourth candidate is run, then those around the best."""


@dataclass(frozen=True)
class Descent:
    """One search; pieces and activations hold what it has found so far.

    ``bits`` are those of weights by unit; ``judges`` the bridge of each unit that is in one.
    """

    offering: Offering
    pieces: Sequence[Piece]
    activations: Sequence[Activation]
    bits: Mapping[str, int]
    judges: Mapping[str, BridgeJudge]

    def run(self, tick: Callable[[int, int], None]) -> None:
        """Start from the defaults, then go round by round: every weight, then every activation.

        Source:
            alternation: EasyQuant, arXiv 2006.16669, algorithm 1; PTQ4ViT, arXiv 2111.12293,
            algorithm 1, which Q-HyViT inherits.
        """
        self._start()
        rounds = self.offering.search.rounds
        layers = [piece for piece in self.pieces if piece.unit.kind in LAYERS]
        total, done = rounds * (len(layers) + len(self.activations)), 0
        for _ in range(rounds):
            for piece in layers:
                self._weight(piece)
                tick(done := done + 1, total)
            for item in self.activations:
                self._activation(item)
                tick(done := done + 1, total)

    def _start(self) -> None:
        for item in self.activations:
            self._choose(item, self.offering.default(item))
        for piece in self.pieces:
            if piece.unit.kind in LAYERS:
                limit = limit_of(self.bits[piece.unit.name])
                self._put(piece, self._peaks(piece) / np.float32(limit))

    def _activation(self, item: Activation) -> None:
        judge = self._judge(item)
        best, found = np.inf, item.grid
        for grids in item.offers:

            def loss(index: int, grids: Sequence[AnyGrid] = grids) -> float:
                if judge is not None:
                    return judge.with_activation(item, grids[index])
                return self._loss(item, grids[index])

            stride = 1 if judge is None or len(grids) <= STRIDE**2 else STRIDE
            index, cost = least(len(grids), loss, stride=stride)
            if cost < best:
                best, found = cost, grids[index]
        assert found is not None
        self._choose(item, found)

    def _loss(self, item: Activation, grid: AnyGrid) -> float:
        """Return what all layers and products that read ``item`` lose, added up."""
        metric = self.offering.search.metric
        return sum(r.piece.cost(metric, r.side, r.rounded(grid)) for r in item.readings)

    def _judge(self, item: Activation) -> BridgeJudge | None:
        """Return the bridge in which ``item`` is read, the first of several."""
        found = (self.judges.get(reading.piece.unit.name) for reading in item.readings)
        return next((judge for judge in found if judge is not None), None)

    def _weight(self, piece: Piece) -> None:
        base = self._peaks(piece) / np.float32(1 << (self.bits[piece.unit.name] - 1))
        fractions = self.offering.fractions().astype(np.float32)
        limit = limit_of(self.bits[piece.unit.name])
        judge = self.judges.get(piece.unit.name)
        by_column = self._apart(piece.unit) and self.offering.search.metric is Metric.HESSIAN
        if judge is None and by_column:
            scales, _ = column_scales(piece.scene, piece.operands[0], base, fractions, limit)
        else:

            def loss(index: int) -> float:
                scales = base * fractions[index]
                if judge is not None:
                    return judge.with_weight(piece.unit, self._rounded(piece.unit, scales))
                weight = rounded_weight(piece.scene.right, scales, limit)
                return piece.cost(self.offering.search.metric, 1, weight)

            stride = 1 if judge is None else STRIDE
            scales = base * fractions[least(len(fractions), loss, stride=stride)[0]]
        self._put(piece, scales)

    def _apart(self, unit: Unit) -> bool:
        return per_column(unit, self.offering.method.weights)

    def _peaks(self, piece: Piece) -> Floats:
        """Return the largest weight of every column, or of all; 1 for a column of zeros."""
        peaks = peaks_of(piece.scene.right, apart=self._apart(piece.unit))
        return np.where(peaks > 0, peaks, np.float32(1))

    def _rounded(self, unit: Unit, scales: Floats) -> Floats:
        weight = weight_of(unit)
        return grid_of(unit, scales, self.bits[unit.name]).fake(weight).astype(np.float32)

    def _choose(self, item: Activation, grid: AnyGrid) -> None:
        item.grid = grid
        for reading in item.readings:
            reading.piece.operands[reading.side] = reading.rounded(grid)
            judge = self.judges.get(reading.piece.unit.name)
            if judge is not None:
                judge.round_activation(reading, grid)

    def _put(self, piece: Piece, scales: Floats) -> None:
        unit = piece.unit
        piece.weight = grid_of(unit, scales, self.bits[unit.name])
        weight = self._rounded(unit, scales)
        piece.operands[1] = columns_of(unit, weight)
        if unit.name in self.judges:
            self.judges[unit.name].round_weight(unit, weight)
