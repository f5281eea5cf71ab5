# SPDX-License-Identifier: Apache-2.0
"""GELUs that run int8, written with the two kernels that onnxruntime has for SiLU."""

from collections.abc import Mapping
from dataclasses import replace

from qhyvit_onnx.graph import Graph, fresh, make_node, names, variable
from qhyvit_onnx.kernels.gates import gelu_gate
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.passes._forms import Forms
from qhyvit_onnx.units import Kind, source_of


def write_gelus(graph: Graph, forms: Forms, stats: Mapping[str, TensorStats]) -> Forms:
    """Replace every chosen GELU by ``x * Sigmoid(x)``; grids make a GELU of it.

    The sigmoid reads the codes of x as if their steps were steeper, and the product reads the codes
    of the sigmoid by another grid than they were rounded to: see ``kernels/gates.py``.
    """
    taken, units, grids = names(graph), list(forms.chosen), dict(forms.grids.activations)
    carried, readings, errors = dict(forms.carried), dict(forms.readings), list(forms.gelus)
    for index, unit in enumerate(units):
        if unit.kind is not Kind.GELU:
            continue
        source, out = unit.inputs[0], unit.output
        name = source_of(source).name
        given = grids[name]
        gate = gelu_gate(given, grids[out.name], stats[name])
        errors.append(gate.error)
        factor = variable(fresh(f"{out.name}_factor", taken), out)
        taken.add(factor.name)
        for node in unit.nodes:
            node.inputs.clear()
            node.outputs.clear()
        sigmoid = make_node("Sigmoid", unit.gate, [source], [factor])
        product = make_node("Mul", unit.name, [source, factor], [out])
        graph.nodes.extend([sigmoid, product])
        units[index] = replace(unit, kind=Kind.SILU, nodes=(product, sigmoid))
        grids[factor.name], carried[factor.name] = gate.written, factor.name
        readings[factor.name, unit.name] = gate.read
        readings[source.name, unit.gate] = replace(given, scale=given.scale * gate.slope)
    known = replace(forms.grids, activations=grids)
    return replace(
        forms, chosen=units, grids=known, carried=carried, readings=readings, gelus=tuple(errors)
    )
