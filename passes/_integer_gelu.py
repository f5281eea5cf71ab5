# SPDX-License-Identifier: Apache-2.0
"""GELUs that run int8, written with the two kernels that onnxruntime has for SiLU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qhyvit_onnx.facts import Grids
from qhyvit_onnx.graph import Graph, fresh, make_node, names, variable
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.kernels.gates import gelu_gate
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.units import Kind, Unit, source_of

Readings = Mapping[tuple[str, str], Grid]
"""By tensor and node: the grid by which that node reads its codes, if not by the tensor's own."""


@dataclass(frozen=True, slots=True)
class Written:
    """What is to be carried once the GELUs are written as products."""

    chosen: Sequence[Unit]
    grids: Grids
    carried: Mapping[str, str]
    readings: Readings


def write_gelus(
    graph: Graph, chosen: Sequence[Unit], grids: Grids, carried: Mapping[str, str],
    stats: Mapping[str, TensorStats],
) -> Written:  # fmt: skip
    """Replace every GELU in ``chosen`` by ``x * Sigmoid(x)``; grids make a GELU of it.

    The sigmoid reads the codes of x as if their steps were steeper, and the product reads the codes
    of the sigmoid by another grid than they were rounded to: see ``kernels/gates.py``.
    """
    taken, units = names(graph), list(chosen)
    activations, owners = dict(grids.activations), dict(carried)
    readings: dict[tuple[str, str], Grid] = {}
    for index, unit in enumerate(units):
        if unit.kind is not Kind.GELU:
            continue
        source, out = unit.inputs[0], unit.output
        name = source_of(source).name
        given = grids.activations[name]
        gate = gelu_gate(given, grids.activations[out.name], stats[name])
        factor = variable(fresh(f"{out.name}_factor", taken), out)
        taken.add(factor.name)
        for node in unit.nodes:
            node.inputs.clear()
            node.outputs.clear()
        sigmoid = make_node("Sigmoid", unit.gate, [source], [factor])
        product = make_node("Mul", unit.name, [source, factor], [out])
        graph.nodes.extend([sigmoid, product])
        units[index] = replace(unit, kind=Kind.SILU, nodes=(product, sigmoid))
        activations[factor.name], owners[factor.name] = gate.written, factor.name
        readings[factor.name, unit.name] = gate.read
        readings[source.name, unit.gate] = replace(given, scale=given.scale * gate.slope)
    return Written(units, replace(grids, activations=activations), owners, readings)
