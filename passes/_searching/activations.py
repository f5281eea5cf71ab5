# SPDX-License-Identifier: Apache-2.0
"""Grids of activations, from histograms and from what an error costs at values of each size."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from qhyvit_onnx.config import Search
from qhyvit_onnx.graph import Tensor
from qhyvit_onnx.grid import Cure, Grid, grid_for, symmetric_grid
from qhyvit_onnx.kernels.evidence import Evidence, TensorEvidence
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.kernels.scales import Doubles, range_error, search_range, weighted_counts
from qhyvit_onnx.passes._limits import within_limits
from qhyvit_onnx.passes._searching.tails import cut
from qhyvit_onnx.passes._sources import sources_of
from qhyvit_onnx.units import Unit, is_softmax

LOWEST = {8: 1.0, 6: 2 / 3, 4: 1 / 3}
"""Smallest clip point tried, by bits, relative to the one at 8 bits: with few codes the steps
between them cost more than what calibration saw once and a deployed model sees again."""


@dataclass(frozen=True, slots=True)
class ActivationSearch:
    """What is known of activations.

    By source: ``bits``, 8 where nothing is said; ``readers``, the activation function that is all
    that reads it.
    """

    stats: Mapping[str, TensorStats]
    evidence: Evidence
    bits: Mapping[str, int]
    search: Search
    readers: Mapping[str, str] = field(default_factory=dict)

    def grids(self, units: Iterable[Unit], shifted: Iterable[str]) -> dict[str, Grid]:
        """Return the grids of the tensors that units read and write, each by its source.

        ``shifted``: tensors whose range includes zero by a fold.
        """
        units = list(units)
        found = {
            name: self._grid(source)
            for name, source in sources_of(units).items()
            if is_softmax(source) or name in self.stats
        }
        for name in found.keys() & set(shifted):
            found[name] = replace(found[name], cure=Cure.SHIFT)
        return within_limits(units, found, self.stats)

    def _grid(self, source: Tensor) -> Grid:
        bits = self.bits.get(source.name, 8)
        if is_softmax(source):
            return Grid(2.0**-bits, 0, bits)  # QLinearSoftmax is exact at 1 / 256 only
        seen = self.stats[source.name]
        if seen.low == seen.high:
            return grid_for(seen.low, seen.high, bits=bits)
        counts = _counts(seen, self.evidence.tensors.get(source.name))
        if source.name in self.readers:
            seen = cut(seen, self.readers[source.name], bits)
        low, high = search_range(
            seen.centers, counts, seen.low, seen.high,
            bits=bits, candidates=self.search.candidates, lowest=self.search.lowest * LOWEST[bits],
        )  # fmt: skip
        grid = grid_for(low, high, bits=bits)
        return _cured(grid, seen.centers, counts) if seen.one_sided else grid


def _counts(seen: TensorStats, evidence: TensorEvidence | None) -> Doubles:
    if evidence is None:
        return seen.counts
    return weighted_counts(seen.centers, seen.counts, evidence.values, evidence.gains)


def _cured(cover: Grid, centers: Doubles, counts: Doubles) -> Grid:
    """Return the better grid for a range without zero: widened to zero, or symmetric about it."""
    symmetric = symmetric_grid(max(-cover.low, cover.high), bits=cover.bits)
    errors = [
        range_error(centers, counts, grid.low, grid.high, grid.top) for grid in (cover, symmetric)
    ]
    return symmetric if errors[1] < errors[0] else replace(cover, cure=Cure.COVER)
