# SPDX-License-Identifier: Apache-2.0
"""What rounding does to the output, one unit at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from qhyvit_onnx.config import Guard
from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.facts import RANGES, SEARCHED, SENSITIVITY
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes._board import Board
from qhyvit_onnx.passes._fastest import fastest
from qhyvit_onnx.passes._sensitivity import Probe, measure
from qhyvit_onnx.state import State
from qhyvit_onnx.units import find_units


@dataclass(frozen=True)
class Sense(Pass):
    """Measure the output error that every unit of the fastest placement makes alone.

    A forward run of the float model for every unit and sample: most of what placement costs.
    """

    target: Target
    guard: Guard = Guard()  # noqa: RUF009  frozen

    name = "sense"
    summary = "what rounding each unit alone does to the output"
    needs = (RANGES, SEARCHED)
    gives = (SENSITIVITY,)

    def run(self, state: State) -> Outcome:
        """Put SENSITIVITY, empty when the guard is off; the graph stays as it is."""
        probes = self._probes(state) if self.guard.samples else ()
        if not probes:
            state.put(SENSITIVITY, {})
            return Outcome(0, "nothing runs int8" if self.guard.samples else "off (no guard)")
        affordable = max(1, self.guard.runs // len(probes))
        total = min(self.guard.samples, affordable, len(state.calibration))
        samples = islice(state.calibration, total)
        grids = state.get(SEARCHED)
        noise = measure(state.model(), probes, grids, samples, lambda n: state.tick(n, total))
        state.put(SENSITIVITY, noise)
        told = f"{len(probes)} units on {total} samples: together {100 * sum(noise.values()):.2g} %"
        return Outcome(0, f"{told} output error")

    def _probes(self, state: State) -> Sequence[Probe]:
        units = tuple(find_units(state.graph))
        placed = fastest(state, units, self.target, state.get(SEARCHED).activations).chosen
        board = Board(state.graph, units, placed)
        return [Probe(unit, board.writes_codes(unit)) for unit in units if unit.name in placed]
