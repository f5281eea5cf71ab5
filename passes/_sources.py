# SPDX-License-Identifier: Apache-2.0
"""Tensors at the borders of units, and where their elements come from: those share one grid."""

from collections.abc import Iterable, Iterator, Mapping

from qhyvit_onnx.graph import Tensor
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.units import Unit, source_of


def sources_of(units: Iterable[Unit]) -> dict[str, Tensor]:
    """Return by name the computed tensors whose elements ``units`` read, write and round inside."""
    return {source.name: source for source in map(source_of, _borders(units))}


def spread(units: Iterable[Unit], grids: Mapping[str, Grid]) -> dict[str, Grid]:
    """Return the grids of all tensors at borders of units, and of their sources, from the latter's.

    A tensor whose source has no grid gets none.
    """
    around = [tensor for border in _borders(units) for tensor in (border, source_of(border))]
    sources = {tensor.name: source_of(tensor).name for tensor in around}
    return {name: grids[source] for name, source in sources.items() if source in grids}


def _borders(units: Iterable[Unit]) -> Iterator[Tensor]:
    for unit in units:
        yield from (*unit.inputs, unit.output, *unit.interior)
