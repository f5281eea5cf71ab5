# SPDX-License-Identifier: Apache-2.0
"""What rounding does to the output, one unit at a time."""

import math
from dataclasses import dataclass
from itertools import islice

from qhyvit_onnx.config import Effort, Guard
from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.effort import effort_of
from qhyvit_onnx.facts import RANGES, SEARCHED, SENSITIVITY
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes._board import Board
from qhyvit_onnx.passes._fastest import FASTEST, fastest
from qhyvit_onnx.passes._sensitivity import measure
from qhyvit_onnx.passes._twins import Probe
from qhyvit_onnx.state import State
from qhyvit_onnx.units import find_units

_HASTE = 4
"""Samples and work of the guard are divided by this at effort fast, of which they would be half."""


@dataclass(frozen=True)
class Sense(Pass):
    """Find the fastest placement, and measure the output error that each of its units makes alone.

    A run of what follows the unit in the float model, for every unit and sample: most of what
    placement costs. Of a large model, one sample, and its errors not all the way.
    """

    target: Target
    guard: Guard = Guard()  # noqa: RUF009  frozen

    name = "sense"
    summary = "what is fastest, and what rounding each unit of it alone does to the output"
    needs = (RANGES, SEARCHED)
    gives = (FASTEST, SENSITIVITY)

    def run(self, state: State) -> Outcome:
        """Put FASTEST, and SENSITIVITY, empty without a guard; the graph stays as it is."""
        units, grids = tuple(find_units(state.graph)), state.get(SEARCHED)
        found = fastest(state, units, self.target, grids.activations)
        state.put(FASTEST, found)
        if not self.guard.samples:
            state.put(SENSITIVITY, {})
            return Outcome(0, "off (no guard)")
        board = Board(state.graph, units, found.chosen)
        lines = found.prices.lines
        probes = [
            Probe(unit, board.writes_codes(unit), lines[unit.name].float_cost)
            for unit in units
            if unit.name in found.chosen
        ]
        if not probes:
            state.put(SENSITIVITY, {})
            return Outcome(0, "nothing runs int8")
        count, near = self._extent(state, len(probes) * found.work)
        samples, total = islice(state.calibration, count), len(probes) * count
        noise = measure(
            state.model(), probes, grids, samples, lambda n: state.tick(n, total), near=near
        )
        state.put(SENSITIVITY, noise)
        told = f"{len(probes)} units on {count} samples: together {100 * sum(noise.values()):.2g} %"
        return Outcome(0, f"{told} output error")

    def _extent(self, state: State, work: float) -> tuple[int, bool]:
        """Return on how many samples to measure, when one is so much ``work``, and whether near.

        One sample at least; near where that is too much already.
        """
        haste = _HASTE if effort_of(state.config) is Effort.FAST else 1
        most = min(-(-self.guard.samples // haste), len(state.calibration))
        able = self.guard.work / (haste * work) if work else math.inf
        return max(1, int(min(most, able))), able < 1
