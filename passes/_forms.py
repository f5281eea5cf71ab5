# SPDX-License-Identifier: Apache-2.0
"""What is decided about a graph, handed from one change of form to the next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qhyvit_onnx.facts import Grids
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.units import Unit


@dataclass(frozen=True, slots=True)
class Forms:
    """What is to be written: units on integer kernels, and tensors carried as uint8."""

    chosen: Sequence[Unit]
    grids: Grids
    carried: Mapping[str, str]
    """Tensor name to the tensor whose grid it uses."""
    readings: Mapping[tuple[str, str], Grid] = field(default_factory=dict)
    """By tensor and node: the grid by which that node reads its codes, if not by the tensor's."""
    outside: frozenset[str] = frozenset()
    """Inputs of the graph that come in as codes."""
    gelus: tuple[float, ...] = ()
    """Of each GELU on integers, the error of its form in steps of its output."""
    count: int = 0
    """Forms that were changed for speed."""
