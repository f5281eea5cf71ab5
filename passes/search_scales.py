# SPDX-License-Identifier: Apache-2.0
"""Scale and zero point of every activation, scales of every weight, by least squared error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.config import CompileConfig, Search
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.facts import FOLDS, RANGES, SEARCHED, Grids
from qhyvit_onnx.graph import Tensor, value
from qhyvit_onnx.grid import Cure, Grid, WeightGrid, grid_for, symmetric_grid
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.kernels.scales import pair_safe_scale, range_error, search_range, weight_scale
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes._board import unmatched
from qhyvit_onnx.precision import Widths
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import Target
from qhyvit_onnx.units import LAYERS, Kind, Unit, find_units, is_softmax, source_of

CLIPS = {8: 0.7, 6: 0.6, 4: 0.35}
"""Smallest clip point of a weight tried, as a fraction of its peak, by bits."""

BIAS_STEPS = 1 << 30
"""Largest int32 bias code allowed: half of the type, so that accumulation cannot overflow."""


@dataclass(frozen=True)
class SearchScales(Pass):
    """Pick grids from the calibration statistics and the weights; the graph stays as it is."""

    target: Target
    search: Search = Search()  # noqa: RUF009  frozen

    name = "search-scales"
    summary = "scale and zero point per tensor, scale per weight channel, by least squared error"
    needs = (RANGES, FOLDS)
    gives = (SEARCHED,)

    def run(self, state: State) -> Outcome:
        """Put SEARCHED."""
        stats, units = state.get(RANGES), find_units(state.graph)
        borders = [t for unit in units for t in (*unit.inputs, unit.output, *unit.interior)]
        sources = [source_of(tensor) for tensor in borders]
        widths = widths_of(state.config, units)
        bits = _activation_bits(units, widths)
        activations = {
            tensor.name: self._activation(tensor, stats, bits.get(source_of(tensor).name, 8))
            for tensor in (*borders, *sources)
            if is_softmax(source_of(tensor)) or source_of(tensor).name in stats
        }
        for name in {name for fold in state.get(FOLDS) for name in fold.shifted}:
            if name in activations:
                activations[name] = replace(activations[name], cure=Cure.SHIFT)
        for unit in units:
            if unit.clip is not None:
                activations[unit.output.name] = _inside(activations[unit.output.name], unit.clip[1])
        weights = {
            unit.name: self._weight(unit, activations, widths.of_layer(unit.name).weights)
            for unit in units
            if unit.kind in LAYERS
        }
        state.put(SEARCHED, Grids(activations, weights))
        cured = sum(grid.cure is not Cure.NONE for grid in activations.values())
        return Outcome(
            0, f"{len(activations)} activation grids ({cured} cured), {len(weights)} weights"
        )

    def _activation(self, tensor: Tensor, stats: Mapping[str, TensorStats], bits: int) -> Grid:
        """Return the grid of ``tensor``: that of the tensor its elements come from."""
        source = source_of(tensor)
        if is_softmax(source):
            return Grid(2.0**-bits, 0, bits)  # QLinearSoftmax is exact at 1 / 256 only
        seen = stats[source.name]
        if seen.low == seen.high:
            return grid_for(seen.low, seen.high, bits=bits)
        low, high = search_range(
            seen.centers, seen.counts, seen.low, seen.high,
            bits=bits, candidates=self.search.candidates, lowest=self.search.lowest,
        )  # fmt: skip
        grid = grid_for(low, high, bits=bits)
        return _cured(grid, seen) if seen.one_sided else grid

    def _weight(self, unit: Unit, activations: Mapping[str, Grid], bits: int) -> WeightGrid:
        weight = value(unit.weight)
        assert weight is not None
        rows = _rows(unit, weight)
        stacked = unit.kind is Kind.MATMUL and weight.ndim > 2  # kernels take one scale for all
        fitted = rows.reshape(1, -1) if stacked else rows
        limit = (1 << (bits - 1)) - 1
        fine = 24 if bits == 8 else 80
        scale = weight_scale(fitted, limit=limit, candidates=fine, lowest=CLIPS[bits])
        if self.target.pair_limit and unit.kind is not Kind.DEPTHWISE:
            scale = pair_safe_scale(rows, scale, limit=self.target.pair_limit)
        scale = scale.max(keepdims=True) if stacked else _for_bias(scale, unit, activations)
        return WeightGrid(_positive(scale), unit.weight_axis, limit)


def widths_of(config: CompileConfig, units: Sequence[Unit]) -> Widths:
    """Return the precision of every layer."""
    layers = [unit.name for unit in units if unit.kind in LAYERS]
    if missing := unmatched(list(config.bits), layers):
        raise ConfigError(f"--bits {missing[0]!r} matches no layer", hint="see qhv-onnx inspect -v")
    return Widths.of(config.precision, config.edge_precision, config.bits, layers)


def _activation_bits(units: Sequence[Unit], widths: Widths) -> dict[str, int]:
    """Return the bits of every tensor by its source, where they are not 8.

    Layers and products read few bits; what only adds, gates and pools read keeps 8: it costs no
    multiplication, and residual streams live on it.
    """
    found: dict[str, int] = {}
    for unit in units:
        if unit.kind in LAYERS or unit.kind is Kind.PRODUCT:
            bits = widths.of_layer(unit.name).activations
            for name in {source_of(tensor).name for tensor in unit.inputs}:
                found[name] = max(bits, found.get(name, 0))
    return found


def _cured(cover: Grid, seen: TensorStats) -> Grid:
    """Return the better grid for a range without zero: widened to zero, or symmetric about it."""
    symmetric = symmetric_grid(max(-cover.low, cover.high), bits=cover.bits)
    errors = [
        range_error(seen.centers, seen.counts, grid.low, grid.high, grid.top)
        for grid in (cover, symmetric)
    ]
    return symmetric if errors[1] < errors[0] else replace(cover, cure=Cure.COVER)


def _rows(unit: Unit, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weight as (C_out, K), K in the order the kernel sums: position, then channel."""
    if unit.kind is Kind.MATMUL:
        return np.moveaxis(weight, -2, -1).reshape(-1, weight.shape[-2])
    if unit.kind is Kind.GEMM and unit.weight_axis == 1:
        return np.ascontiguousarray(weight.T)
    if weight.ndim > 2:
        return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)
    return weight


def _for_bias(
    scale: NDArray[np.float32], unit: Unit, activations: Mapping[str, Grid]
) -> NDArray[np.float32]:
    """Return ``scale`` raised where an int32 bias would overflow; rows of zeros fit the bias."""
    bias = np.zeros(scale.shape) if unit.bias is None else np.asarray(value(unit.bias))
    needed = np.abs(bias).reshape(-1) / (activations[unit.inputs[0].name].scale * BIAS_STEPS)
    fitting = np.where(scale > 0, scale, needed * 2**10)
    raised: NDArray[np.float32] = np.maximum(fitting, needed).astype(np.float32)
    return raised


def _positive(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    out: NDArray[np.float32] = np.where(
        scale > 1e-20, scale, np.float32(1e-20 if scale.max() > 0 else 1.0)
    )
    return out.astype(np.float32)


def _inside(grid: Grid, high: float) -> Grid:
    """Return ``grid`` narrowed until no code lies above ``high``: else a Clip cannot be folded."""
    scale = np.float32(min(grid.scale, high / max(grid.top - grid.zero_point, 1)))
    while scale * np.float32(grid.top - grid.zero_point) > high:
        scale = np.nextafter(scale, np.float32(0))
    return replace(grid, scale=float(scale))
