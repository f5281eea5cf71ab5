# SPDX-License-Identifier: Apache-2.0
"""Which unit runs int8, which stays float, and which tensors travel as uint8 between them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice

from qhyvit_onnx.config import CompileConfig, Extent, Guard
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.facts import PLACEMENT, RANGES, SEARCHED, SENSITIVITY, UNITS
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes._board import Board, unmatched
from qhyvit_onnx.passes._kernelless import kernelless
from qhyvit_onnx.passes._sensitivity import Probe, measure
from qhyvit_onnx.precision import Precision
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import Target
from qhyvit_onnx.units import find_units


@dataclass(frozen=True)
class Place(Pass):
    """Apply the target's table, then leave float what the output is measured to depend on most.

    With Extent.FULL no table is asked: whatever has an integer kernel runs on it, and every node
    that has none is told with the reason.
    """

    target: Target
    exclude: tuple[str, ...] = ()
    guard: Guard = Guard()  # noqa: RUF009  frozen

    name = "place"
    summary = "which fusion unit runs int8 and which stays float on this target"
    needs = (RANGES, SEARCHED)
    gives = (UNITS, PLACEMENT, SENSITIVITY)

    def run(self, state: State) -> Outcome:
        """Put UNITS, PLACEMENT and SENSITIVITY; the graph stays as it is."""
        units = tuple(find_units(state.graph))
        if missing := unmatched(self.exclude, [node.name for node in state.graph.nodes]):
            raise ConfigError(
                f"--exclude {missing[0]!r} matches no node", hint="see qhv-onnx inspect -v"
            )
        extent = state.config.placement
        board = Board(state.graph, units, self.target.reaching(extent))
        board.choose(state.get(RANGES), self.exclude)
        noise = self._measure(state, board)
        spared = worst(noise, self.guard, len(board.chosen))
        board.drop({name: _sensitive(noise[name]) for name in spared})
        state.put(UNITS, units)
        state.put(SENSITIVITY, noise)
        told = kernelless(state.graph, units) if extent is Extent.FULL else {}
        placement = board.placement()
        state.put(PLACEMENT, replace(placement, reasons={**placement.reasons, **told}))
        note = f"{len(board.chosen)} of {len(units)} units int8"
        note = f"{note}, {len(spared)} left float by the guard" if spared else note
        return Outcome(0, note, Counter(told.values()))

    def _measure(self, state: State, board: Board) -> dict[str, float]:
        """Return the output noise of every chosen unit; nothing when the guard is off."""
        if not (self.guard.samples and board.chosen) or _low(state.config):
            return {}
        chosen = [unit for unit in board.units if unit.name in board.chosen]
        probes = [Probe(unit, board.writes_codes(unit)) for unit in chosen]
        affordable = max(1, self.guard.runs // len(probes))
        total = min(self.guard.samples, affordable, len(state.calibration))
        samples = islice(state.calibration, total)
        return measure(
            state.model(), probes, state.get(SEARCHED), samples, lambda n: state.tick(n, total)
        )


def _low(config: CompileConfig) -> bool:
    """Tell whether fewer than 8 bits are asked for: then no unit is loud by accident."""
    asked = Precision.parse(config.precision)
    return min(asked.weights, asked.activations) < 8


def worst(noise: Mapping[str, float], guard: Guard, placed: int) -> list[str]:
    """Return the units to leave float: worst first, until what is left is quiet enough.

    Errors of different units are taken to add up; at most ``guard.max_share`` of ``placed``.
    """
    left = sum(noise.values())
    spared: list[str] = []
    for name, share in sorted(noise.items(), key=lambda item: (-item[1], item[0])):
        if left <= guard.max_noise or len(spared) >= int(guard.max_share * placed):
            break
        spared.append(name)
        left -= share
    return spared


def _sensitive(noise: float) -> str:
    return f"sensitive: alone it makes {100 * noise:.2g} % output error"
