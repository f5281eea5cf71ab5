# SPDX-License-Identifier: Apache-2.0
"""Scales and codes of the weight of one layer."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.grid import Grid, WeightGrid
from qhyvit_onnx.kernels.evidence import LayerEvidence
from qhyvit_onnx.kernels.feedback import Feedback
from qhyvit_onnx.kernels.scales import weight_scale
from qhyvit_onnx.kernels.weight_search import Fit, cost_on_rows, search_fit
from qhyvit_onnx.passes._matrices import (
    Floats,
    bias_scales,
    from_rows,
    is_stacked,
    limit_of,
    pair_scales,
    positive,
    rows_of,
)
from qhyvit_onnx.units import Unit, source_of

CLIPS = {8: 0.7, 6: 0.6, 4: 0.35}
"""Smallest clip point of a weight tried, as a fraction of its peak, by bits."""


@dataclass(frozen=True, slots=True)
class WeightChoice:
    """The grid of a weight, and its codes where they are not the nearest."""

    grid: WeightGrid
    codes: NDArray[np.int8] | None = None


class WeightSearch:
    """One layer: what it reads is known, its scales are looked for."""

    def __init__(
        self, unit: Unit, activations: Mapping[str, Grid], *, bits: int, pair_limit: int
    ) -> None:
        """Take ``activations``, the grids by source, for what the layer reads.

        ``pair_limit``: the largest sum of two neighbouring codes; 0 where no kernel minds.
        """
        self._unit, self._bits = unit, bits
        self._limit = limit_of(bits)
        self._rows = rows_of(unit)
        self._owners = np.arange(len(self._rows))
        if is_stacked(unit):
            self._owners = np.zeros(len(self._rows), np.int64)
        self._least = self._least_scale(activations, pair_limit)

    def nearest(self) -> WeightChoice:
        """Return the scales with the least squared rounding error of the weights themselves."""
        return WeightChoice(self._grid(self._nearest_scale()))

    def by_evidence(self, evidence: LayerEvidence) -> WeightChoice:
        """Return scales and codes with the least error of the output.

        Rows that do worse than ``nearest`` on the places drawn from the layer fall back to it.
        """
        feedback = Feedback(evidence.gram)
        fit = search_fit(
            self._rows, feedback, self._owners,
            limit=self._limit, lowest=CLIPS[self._bits], legal=self._legal,
        )  # fmt: skip
        kept = self._better(fit, self._plain(), evidence)
        codes = from_rows(self._unit, kept.codes).astype(np.int8)
        return WeightChoice(self._grid(kept.scale), codes)

    def _plain(self) -> Fit:
        scale = self._nearest_scale()
        codes = np.rint(self._rows / scale[self._owners, None])
        return Fit(scale, np.clip(codes, -self._limit, self._limit))

    def _better(self, one: Fit, other: Fit, evidence: LayerEvidence) -> Fit:
        """Return, scale by scale, the fit that costs less."""
        costs = [
            np.bincount(self._owners, cost_on_rows(self._error(fit), evidence))
            for fit in (one, other)
        ]
        first = costs[0] < costs[1]
        return Fit(
            np.where(first, one.scale, other.scale),
            np.where(first[self._owners, None], one.codes, other.codes),
        )

    def _error(self, fit: Fit) -> Floats:
        error: Floats = fit.codes * fit.scale[self._owners, None] - self._rows
        return error

    def _nearest_scale(self) -> Floats:
        fitted = self._rows.reshape(1, -1) if is_stacked(self._unit) else self._rows
        fine = 24 if self._bits == 8 else 80
        found = weight_scale(fitted, limit=self._limit, candidates=fine, lowest=CLIPS[self._bits])
        return self._legal(found)

    def _legal(self, scale: Floats) -> Floats:
        """Return ``scale`` raised to what kernels can take; above zero."""
        raised: Floats = np.where(scale > 0, scale, self._least.zeros)
        return positive(np.maximum(raised, self._least.rows))

    def _least_scale(self, activations: Mapping[str, Grid], pair_limit: int) -> "_Least":
        """Return the smallest scales at which pairs of codes do not saturate and the bias fits.

        A row of zeros takes a scale that suits its bias.
        """
        unit = self._unit
        rows = np.zeros(int(self._owners.max()) + 1, np.float32)
        np.maximum.at(rows, self._owners, pair_scales(unit, pair_limit))
        bias = np.zeros_like(rows)
        if unit.bias is not None:
            step = activations[source_of(unit.inputs[0]).name].scale
            np.maximum.at(bias, self._owners, bias_scales(unit, step))
        return _Least(np.maximum(rows, bias), bias * np.float32(2**10))

    def _grid(self, scale: Floats) -> WeightGrid:
        return WeightGrid(scale, self._unit.weight_axis, self._limit)


@dataclass(frozen=True, slots=True)
class _Least:
    """Lower bounds of scales.

    Shapes:
        (S,): rows, for every scale; zeros, what a row of zeros takes instead.
    """

    rows: Floats
    zeros: Floats
