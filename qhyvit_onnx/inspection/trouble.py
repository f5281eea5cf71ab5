# SPDX-License-Identifier: Apache-2.0
"""Where one grid per tensor is too coarse or does not fit: channel spread and one-sided ranges."""

from collections.abc import Iterator, Mapping

import numpy as np

from qhyvit_onnx.facts import FOLDS, RANGES, SEARCHED, STATS
from qhyvit_onnx.graph import Tensor
from qhyvit_onnx.grid import Cure
from qhyvit_onnx.inspection.records import Observed, OneSided, Spread
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.state import State
from qhyvit_onnx.units import source_of

NO_CURE = "none"
"""Of a tensor that no fold could change."""


def observed(state: State, regions: Mapping[str, int], channels: Mapping[str, int]) -> Observed:
    """Return what the calibration data showed of tensors that get a grid.

    ``regions`` and ``channels`` give region and channel axis by tensor name, where they are known.
    """
    origin = state.calibration.origin
    stats, names = state.get(STATS), _gridded(state)
    many = [name for name in names if stats[name].channel_low.size > 1]
    watched = [name for name in many if _along_channels(stats[name], channels.get(name))]
    wide = [_spread(state, name, regions.get(name)) for name in watched]
    sided = [_one_sided(state, name, regions.get(name)) for name in names if stats[name].one_sided]
    cured = [item for item in sided if item.cure != Cure.NONE]  # a softmax has a fixed grid
    return Observed(
        data=" ".join(part for part in (str(origin.kind), origin.path) if part),
        samples=origin.taken,
        spreads=tuple(sorted(wide, key=lambda item: -item.before)),
        unwatched=len(many) - len(watched),
        one_sided=tuple(sorted(cured, key=lambda item: -lost(item.low, item.high))),
    )


def spread(stats: TensorStats) -> float:
    """Return the widest channel range over the median one; 1 when all are alike.

    Channels that never change are left out: any grid holds them.
    """
    ranges = np.asarray(stats.channel_high, np.float64) - stats.channel_low
    alive = ranges[ranges > 0.0]
    return float(alive.max() / np.median(alive)) if alive.size else 1.0


def lost(low: float, high: float) -> float:
    """Return the fraction of levels that a range without zero loses when widened to zero."""
    far = max(abs(low), abs(high))
    return min(abs(low), abs(high)) / far if far else 0.0


def _gridded(state: State) -> list[str]:
    """Return the tensors that get a grid of their own, seen before and after folding."""
    grids, before, after = state.get(SEARCHED).activations, state.get(STATS), state.get(RANGES)
    owners = _owners(state.graph.tensors(), grids)
    return [name for name in dict.fromkeys(owners) if name in before and name in after]


def _owners(tensors: Mapping[str, Tensor], grids: Mapping[str, object]) -> Iterator[str]:
    for name in grids:
        if name in tensors:
            yield source_of(tensors[name]).name


def _along_channels(seen: TensorStats, axis: int | None) -> bool:
    """Tell whether channels were watched; so it is taken to be where no axis is known to be one."""
    return axis is None or axis == seen.axis % max(len(seen.shape), 1)


def _spread(state: State, name: str, region: int | None) -> Spread:
    before, after = state.get(STATS)[name], state.get(RANGES)[name]
    return Spread(
        tensor=name,
        region=region,
        channels=before.channel_low.size,
        before=spread(before),
        after=spread(after),
        cure=next((fold.cure for fold in state.get(FOLDS) if name in fold.tensors), NO_CURE),
    )


def _one_sided(state: State, name: str, region: int | None) -> OneSided:
    seen, grid = state.get(STATS)[name], state.get(SEARCHED).activations[name]
    return OneSided(tensor=name, region=region, low=seen.low, high=seen.high, cure=str(grid.cure))
