# SPDX-License-Identifier: Apache-2.0
"""The grids of a published method: ranges first, then what it treats apart, then its search."""

from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.facts import EVIDENCE, Grids
from qhyvit_onnx.methods import Freedom, Method, OutputSearch, Whole
from qhyvit_onnx.passes._base import Outcome
from qhyvit_onnx.passes._baselines.bridges import judges_of
from qhyvit_onnx.passes._baselines.descent import Descent
from qhyvit_onnx.passes._baselines.draft import Draft
from qhyvit_onnx.passes._baselines.offers import Offering
from qhyvit_onnx.passes._baselines.pieces import activations_of, pieces_of
from qhyvit_onnx.recipes import Recipe
from qhyvit_onnx.state import State
from qhyvit_onnx.units import LAYERS, Kind


def search(state: State, recipe: Recipe, target: Target) -> tuple[Grids, Outcome]:
    """Return the grids that ``recipe``, a published one, gives, and what was done.

    Error:
        ConfigError when it looks at layers, and no gradients were gathered.
    """
    method = recipe.method
    assert method is not None  # the recipe of this project has a search of its own
    if recipe.needs_evidence and not state.get(EVIDENCE):
        raise ConfigError(
            f"recipe {recipe.name} looks at what layers read: that takes torch",
            hint="use --effort default with torch installed, or recipe minmax or percentile",
        )
    draft = Draft(state, method)
    draft.treat_norms()
    draft.treat_attention()
    misses: dict[str, int] = {}
    searched = ""
    if method.outputs is not None:
        searched, misses = _by_outputs(state, draft, method, method.outputs)
    grids = draft.result(target)
    counts = f"{len(grids.activations)} activation grids, {len(grids.weights)} weights"
    apart = len(grids.simulated) + len(grids.columns)
    simulated = f", {apart} of all only simulated" if apart else ""
    return grids, Outcome(0, f"{recipe.name}: {counts}{simulated}{searched}", misses)


def _by_outputs(
    state: State, draft: Draft, method: Method, settings: OutputSearch
) -> tuple[str, dict[str, int]]:
    """Search by the error of layer outputs; put what is found into ``draft``."""
    evidence = state.get(EVIDENCE)
    pieces = pieces_of(draft.units, evidence)
    apart = frozenset({Kind.PRODUCT}) if Freedom.HEADS in settings.freedoms else frozenset()
    read = activations_of(pieces, evidence, apart)
    activations = [item for item in read if draft.searchable(item)]
    clipped = frozenset(unit.output.name for unit in draft.units if unit.clip is not None)
    offering = Offering(method, settings, draft.stats, draft.roles, clipped)
    for item in activations:
        item.offers = offering.offers(item, draft.bits_of(item.source))
    judges = judges_of(state, pieces) if settings.whole is Whole.BRIDGES else {}
    bits = {unit.name: draft.weight_bits(unit) for unit in draft.units if unit.kind in LAYERS}
    Descent(offering, pieces, activations, bits, judges).run(state.tick)
    draft.take(pieces, activations)
    layers = sum(piece.unit.kind in LAYERS for piece in pieces)
    note = f"; {layers} layers and {len(pieces) - layers} products by what they write"
    if judges:
        note += f", {len(set(judges.values()))} bridges as one"
    missed = {
        "layers without evidence: their range": len(bits) - layers,
        "activations that are fixed": len(read) - len(activations),
    }
    return note, {reason: count for reason, count in missed.items() if count}
