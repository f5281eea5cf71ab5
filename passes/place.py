# SPDX-License-Identifier: Apache-2.0
"""Which unit runs int8, which stays float, and which tensors travel as uint8 between them."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from qhyvit_onnx.config import Extent, Guard
from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.facts import PLACEMENT, PREDICTION, SENSITIVITY, UNITS
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes._board import Board
from qhyvit_onnx.passes._fastest import FASTEST, Fastest
from qhyvit_onnx.passes._kernelless import kernelless
from qhyvit_onnx.passes._ledger import Ledger
from qhyvit_onnx.passes._quiet import quietest_enough
from qhyvit_onnx.state import State
from qhyvit_onnx.units import Unit, find_units


@dataclass(frozen=True)
class Place(Pass):
    """Find the placement that costs least on the target and disturbs the output little enough.

    With Extent.FULL int8 costs nothing: whatever has an integer kernel runs on it, and every node
    that has none is told with the reason.

    Source:
        a minimum cut, exact: see ``_ledger`` and ``_cut``.
    """

    target: Target
    guard: Guard = Guard()  # noqa: RUF009  frozen
    refused: str = ""
    """Why every unit stays float, if every unit does."""

    name = "place"
    summary = "which fusion unit runs int8 and which stays float: a minimum cut over measured costs"
    needs = (FASTEST, SENSITIVITY)
    gives = (UNITS, PLACEMENT, PREDICTION)

    def run(self, state: State) -> Outcome:
        """Put UNITS, PLACEMENT and PREDICTION; the graph stays as it is."""
        units = tuple(find_units(state.graph))
        found = state.get(FASTEST)
        noise = state.get(SENSITIVITY)
        chosen = quietest_enough(found.ledger, found.chosen, noise, self.guard)
        if self.refused:
            chosen = set()
        left = [u.name for u in units if u.name not in chosen and u.name not in found.refused]
        reasons = dict(found.refused) | {
            name: self.refused or _why(found, chosen, noise, name) for name in left
        }
        kernels = kernelless(state.graph, units) if state.config.placement is Extent.FULL else {}
        placement = Board(state.graph, units, chosen).placement()
        state.put(UNITS, units)
        state.put(PREDICTION, found.predict(chosen, self.target.unit))
        state.put(PLACEMENT, replace(placement, reasons=reasons | kernels))
        spared = 0 if self.refused else len(found.chosen - chosen)
        return Outcome(0, _note(units, chosen, spared), Counter(kernels.values()))


def _why(found: Fastest, chosen: Collection[str], noise: Mapping[str, float], name: str) -> str:
    """Return why a unit that could run int8 does not."""
    if name in found.chosen:
        return f"sensitive: alone it makes {100 * noise[name]:.2g} % output error"
    return _dearer(found.ledger, chosen, name)


def _dearer(ledger: Ledger, chosen: Collection[str], name: str) -> str:
    """Return by how much int8 would make the network slower at this place."""
    least = ledger.cost(chosen)
    more = (ledger.cost({*chosen, name}) - least) / max(least, 1e-9)
    return f"int8 here would cost {100 * more:.2g} % more in all"


def _note(units: Sequence[Unit], chosen: Collection[str], spared: int) -> str:
    note = f"{len(chosen)} of {len(units)} units int8"
    return f"{note}, {spared} left float by the guard" if spared else note
