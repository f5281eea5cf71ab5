# SPDX-License-Identifier: Apache-2.0
"""One streaming run over the calibration data: ranges, histograms, moments."""

from collections.abc import Mapping
from dataclasses import dataclass

from qhyvit_onnx.facts import STATS
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes._observe import observe, watched
from qhyvit_onnx.state import State
from qhyvit_onnx.units import find_units


@dataclass(frozen=True)
class Calibrate(Pass):
    """Watch every tensor at the border of a unit, sample by sample; keep sums, never tensors."""

    name = "calibrate"
    summary = "one streaming run over the data: ranges, histograms, moments in fixed memory"
    gives = (STATS,)

    def run(self, state: State) -> Outcome:
        """Put STATS: statistics by tensor name."""
        units = find_units(state.graph)
        stats, samples = observe(state, watched(units, state.config), units)
        state.put(STATS, stats)
        return Outcome(0, _note(stats, samples))


def _note(stats: Mapping[str, TensorStats], samples: int) -> str:
    one_sided = sum(item.one_sided for item in stats.values())
    return f"{samples} samples, {len(stats)} tensors watched, {one_sided} of them one-sided"
