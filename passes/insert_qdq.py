# SPDX-License-Identifier: Apache-2.0
"""Writes QuantizeLinear and DequantizeLinear exactly as the integer kernels need them.

One Q per tensor, shared; scalar constants as parameters; int8 weights and int32 biases behind
their own DQ; a float tensor that a kernel fuses away has its Q as only reader.
"""

from dataclasses import dataclass

from qhyvit_onnx.config import Io
from qhyvit_onnx.facts import GRIDS, INTERFACE, PLACEMENT, RANGES
from qhyvit_onnx.graph import tidy
from qhyvit_onnx.interface import Interface
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes._byte_io import carry_ends, open_ends
from qhyvit_onnx.passes._carry import Carrier
from qhyvit_onnx.passes._fast_forms import FastForms
from qhyvit_onnx.passes._forms import Forms
from qhyvit_onnx.passes._integer_gelu import write_gelus
from qhyvit_onnx.passes._roundings import beyond_kernels
from qhyvit_onnx.passes._small_resizes import multiply_resizes
from qhyvit_onnx.passes._weights import WeightWriter
from qhyvit_onnx.recipes import find_recipe, undeployable
from qhyvit_onnx.state import State
from qhyvit_onnx.units import LAYERS, Unit, find_units


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Carry the chosen tensors as uint8 and the weights of int8 layers as int8."""

    name = "insert-qdq"
    summary = "writes Q and DQ as the integer kernels need them"
    needs = (GRIDS, PLACEMENT, RANGES)
    gives = (INTERFACE,)

    def run(self, state: State) -> Outcome:
        """Edit the graph, put INTERFACE; nothing is decided here.

        Error:
            ConfigError when something that is carried is rounded as no kernel could.
        """
        grids, placement = state.get(GRIDS), state.get(PLACEMENT)
        if beyond_kernels(grids, placement):
            raise undeployable(find_recipe(state.config.recipe))
        units = {unit.name: unit for unit in find_units(state.graph)}
        forms = Forms([units[name] for name in placement.int8], grids, placement.carried)
        forms = write_gelus(state.graph, forms, state.get(RANGES))
        forms = multiply_resizes(state.graph, forms)
        opened = state.config.io is Io.UINT8
        forms = carry_ends(state.graph, forms, state.pixels) if opened else forms
        weights = WeightWriter(state.graph, forms.grids)
        for unit in forms.chosen:
            if unit.kind in LAYERS:
                weights.write(unit)
            if unit.clip is not None and grids.activations[unit.output.name].bits < 8:
                _let_codes_clip(unit)
        tidy(state.graph)
        forms = FastForms(state.graph, forms).write()
        Carrier(state.graph, forms).write()
        tidy(state.graph)
        state.put(
            INTERFACE,
            open_ends(state.graph, forms, state.pixels) if opened else Interface(state.pixels),
        )
        tidy(state.graph)
        note = f"{len(forms.carried)} tensors carried as uint8"
        return Outcome(len(forms.carried), note + _told(forms))


def _told(forms: Forms) -> str:
    """Return what was written in another form, and how much that errs."""
    faster = f", {forms.count} faster forms" if forms.count else ""
    if not forms.gelus:
        return faster
    return f"{faster}, {len(forms.gelus)} GELU as x * sigmoid, {max(forms.gelus):.2f} steps off"


def _let_codes_clip(unit: Unit) -> None:
    """Take out the Relu or Clip of a unit that writes fewer than 8 bits.

    Its codes saturate inside the bounds anyway. onnxruntime folds a Clip only when no code of the
    whole uint8 lies outside, and else leaves the layer in float.
    """
    linear, clip = unit.nodes[-2:]
    clip.outputs.clear()
    linear.outputs = [unit.output]
