# SPDX-License-Identifier: Apache-2.0
"""Scale and zero point of every activation; scales and codes of every weight."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qhyvit_onnx.config import Extent, Search
from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.facts import BRIDGES, EVIDENCE, FLOAT, FOLDS, RANGES, SEARCHED, Grids
from qhyvit_onnx.grid import Cure, Grid
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes._baselines import search as published
from qhyvit_onnx.passes._searching.activations import ActivationSearch
from qhyvit_onnx.passes._searching.bridges import search_bridges
from qhyvit_onnx.passes._searching.products import attention_grids
from qhyvit_onnx.passes._searching.tails import functions
from qhyvit_onnx.passes._searching.weights import WeightChoice, WeightSearch
from qhyvit_onnx.passes._sources import spread
from qhyvit_onnx.passes._widths import activation_bits, widths_of
from qhyvit_onnx.recipes import find_recipe
from qhyvit_onnx.state import State
from qhyvit_onnx.units import LAYERS, Unit, find_units, is_softmax


@dataclass(frozen=True)
class SearchScales(Pass):
    """Pick grids; the graph stays as it is.

    Without evidence from least squared error, of tensors and weights each by itself; with it by
    what errors do to outputs: of the layer, of the product, of the bridge.
    """

    target: Target
    search: Search = Search()  # noqa: RUF009  frozen

    name = "search-scales"
    summary = "scale and zero point per tensor, scale and codes per weight, by least error"
    needs = (RANGES, FOLDS, FLOAT, BRIDGES, EVIDENCE)
    gives = (SEARCHED,)

    def run(self, state: State) -> Outcome:
        """Put SEARCHED; a published recipe finds it in its own way."""
        recipe, units = find_recipe(state.config.recipe), find_units(state.graph)
        if recipe.method is not None:
            grids, outcome = published.search(state, recipe, self.target)
        else:
            grids, outcome = self._search(state, units)
        state.put(SEARCHED, grids)
        return outcome

    def _search(self, state: State, units: Sequence[Unit]) -> tuple[Grids, Outcome]:
        evidence, whole = state.get(EVIDENCE), self._fixes_softmax(state)
        activations = self._activations(state, units)
        if not whole:
            activations |= attention_grids(units, activations, evidence, self.search.candidates)
        weights = self._weights(state, units, activations)
        found = Grids(
            activations,
            {name: choice.grid for name, choice in weights.items()},
            {name: c.codes for name, c in weights.items() if c.codes is not None},
        )
        fixed = {unit.output.name for unit in units if unit.clip is not None}
        if whole:
            fixed |= {t.name for t in state.graph.tensors().values() if is_softmax(t)}
        activations, improved = search_bridges(state, units, found, self.target, fixed)
        found = replace(found, activations=spread(units, activations))
        return found, Outcome(0, _note(found, improved))

    def _fixes_softmax(self, state: State) -> bool:
        """Tell whether an integer Softmax may write attention maps: it writes one grid only."""
        return state.config.placement is Extent.FULL

    def _activations(self, state: State, units: Sequence[Unit]) -> dict[str, Grid]:
        bits = activation_bits(units, widths_of(state.config, units))
        search = ActivationSearch(
            state.get(RANGES), state.get(EVIDENCE), bits, self.search, functions(state.graph)
        )
        shifted = {name for fold in state.get(FOLDS) for name in fold.shifted}
        return search.grids(units, shifted)

    def _weights(
        self, state: State, units: Sequence[Unit], activations: Mapping[str, Grid]
    ) -> dict[str, WeightChoice]:
        widths, evidence = widths_of(state.config, units), state.get(EVIDENCE).layers
        layers = [unit for unit in units if unit.kind in LAYERS]
        found = {}
        for done, unit in enumerate(layers):
            bits = widths.of_layer(unit.name).weights
            search = WeightSearch(unit, activations, bits=bits, pair_limit=self.target.pair_limit)
            known = evidence.get(unit.name)
            found[unit.name] = search.nearest() if known is None else search.by_evidence(known)
            state.tick(done + 1, len(layers))
        return found


def _note(grids: Grids, improved: int) -> str:
    cured = sum(grid.cure is not Cure.NONE for grid in grids.activations.values())
    note = (
        f"{len(grids.activations)} activation grids ({cured} cured), {len(grids.weights)} weights"
    )
    note += f", {len(grids.codes)} by error feedback" if grids.codes else ""
    return note + (f", {improved} bridges as units" if improved else "")
