# SPDX-License-Identifier: Apache-2.0
"""Grids of attention maps: what a softmax writes in floats, and a product alone reads as codes."""

from collections.abc import Iterable, Mapping

from qhyvit_onnx.grid import Grid
from qhyvit_onnx.kernels.evidence import Evidence
from qhyvit_onnx.kernels.product_search import left_grid
from qhyvit_onnx.units import Kind, Unit, is_softmax, source_of


def attention_grids(
    units: Iterable[Unit], grids: Mapping[str, Grid], evidence: Evidence, candidates: int
) -> dict[str, Grid]:
    """Return grids, by source, for the left operands of products that a softmax writes.

    Where an integer Softmax writes them, its grid is fixed: this is for where it runs in floats.
    A map that anything else reads too keeps its grid, which holds all of [0, 1].
    ``grids``: of all tensors, by source.
    """
    units = list(units)
    found: dict[str, Grid] = {}
    for unit in units:
        if unit.name not in evidence.products or not _reads_alone(unit, units):
            continue
        left, right = (source_of(tensor).name for tensor in unit.inputs)
        found[left] = left_grid(
            evidence.products[unit.name], grids[right],
            bits=grids[left].bits, candidates=candidates,
        )  # fmt: skip
    return found


def _reads_alone(unit: Unit, units: Iterable[Unit]) -> bool:
    """Tell whether ``unit`` is the one reader of a softmax, on its left."""
    if unit.kind is not Kind.PRODUCT or not is_softmax(source := source_of(unit.inputs[0])):
        return False
    reading = [other for other in units for t in other.inputs if source_of(t) is source]
    return reading == [unit]
