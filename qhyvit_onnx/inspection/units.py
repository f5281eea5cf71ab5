# SPDX-License-Identifier: Apache-2.0
"""What a target's table says of every fusion unit, before any size is known."""

from qhyvit_onnx.graph import Graph
from qhyvit_onnx.inspection.records import UnitView
from qhyvit_onnx.targets import Rule, Target
from qhyvit_onnx.units import Unit, find_units


def unit_views(graph: Graph, target: Target) -> tuple[UnitView, ...]:
    """Return every unit with its verdict, in topological order."""
    found = ((unit, verdict(unit, target)) for unit in find_units(graph))
    return tuple(UnitView(unit.name, str(unit.kind), text, int8) for unit, (int8, text) in found)


def verdict(unit: Unit, target: Target) -> tuple[bool, str]:
    """Return whether the target's table may run ``unit`` in int8, and on what that depends."""
    row = target.rows[unit.kind]
    if row.rule is Rule.NEVER:
        return False, f"float: {row.reason}"
    if row.rule is not Rule.ALWAYS:
        return True, f"int8 {row.rule}"
    return True, "int8 when large enough" if row.min_reuse else "int8"
