# SPDX-License-Identifier: Apache-2.0
"""Where every fusion unit would run on a target, by cost alone."""

from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.graph import Graph
from qhyvit_onnx.inspection.records import UnitView
from qhyvit_onnx.passes._ledger import Ledger
from qhyvit_onnx.symbolic.dims import is_number
from qhyvit_onnx.units import Kind, Unit, find_units
from qhyvit_onnx.work import Shapes


def unit_views(graph: Graph, target: Target, shapes: Shapes) -> tuple[UnitView, ...]:
    """Return every unit with its verdict, in topological order.

    Where a unit's size has a free dim, the verdict is open and the unit counts as int8.
    """
    units = find_units(graph)
    sized = all(
        is_number(dim)
        for unit in units
        for tensor in (*unit.inputs, unit.output)
        for dim in shapes.get(tensor.name, ())
    )
    allowed = {unit.name for unit in units if unit.kind is not Kind.SOFTMAX}
    chosen = Ledger(graph, units, target, shapes).cheapest(allowed, {}) if sized else None
    return tuple(UnitView(unit.name, str(unit.kind), *_verdict(unit, chosen)) for unit in units)


def _verdict(unit: Unit, chosen: set[str] | None) -> tuple[str, bool]:
    """Return what is said of ``unit``, and whether it counts as int8."""
    if unit.kind is Kind.SOFTMAX:
        return "float: faster there on every target", False
    if chosen is None:
        return "int8 if that is faster at its size (give --input-shape)", True
    return ("int8", True) if unit.name in chosen else ("float: int8 would be slower", False)
