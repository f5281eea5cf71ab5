# SPDX-License-Identifier: Apache-2.0
"""What single integer kernels refuse, or get wrong, and the grids that keep them from it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod

import numpy as np

from qhyvit_onnx.grid import Grid
from qhyvit_onnx.kernels.gates import gelu_gate
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.units import Kind, Unit, source_of

Stats = Mapping[str, TensorStats]

LARGEST_RATIO = 128.0
"""QLinearGlobalAveragePool stops at 256 input steps an output step and element (MLAS); half of
that, because scales may still be learned."""


def limit_of(
    unit: Unit, stats: Stats, grids: Mapping[str, Grid], *, approximate: bool = False
) -> str:
    """Return why the integer kernel of ``unit`` cannot be trusted, else nothing.

    With ``approximate`` a GELU may err by more than its output is rounded.
    """
    if unit.kind is Kind.GELU:
        if approximate:
            return ""
        read = source_of(unit.inputs[0]).name
        gate = gelu_gate(grids[read], grids[unit.output.name], stats[read])
        return "" if gate.hides else "an integer GELU would err by more than its output is rounded"
    if unit.kind is not Kind.SOFTMAX:
        return ""
    (tensor,) = unit.inputs
    shape = stats[tensor.name].shape if tensor.name in stats else tensor.shape
    alone = bool(shape) and shape[unit.node.attrs.get("axis", -1)] == 1
    return "QLinearSoftmax overflows on a single element" if alone else ""


def within_limits(
    units: Iterable[Unit], grids: Mapping[str, Grid], stats: Stats
) -> dict[str, Grid]:
    """Return ``grids``, by source, with those changed on which a kernel would not run or not fuse.

    What a fused Clip writes has no code above its bound. An average is not finer than
    QLinearGlobalAveragePool can write: onnxruntime takes that kernel unasked between integer
    kernels, and it would stop the model.
    """
    found = dict(grids)
    for unit in units:
        name = unit.output.name
        if unit.clip is not None and name in found:
            found[name] = _below(found[name], unit.clip[1])
        read = source_of(unit.inputs[0]).name
        if unit.node.op == "GlobalAveragePool" and {read, name} <= found.keys():
            count = prod(stats[unit.inputs[0].name].shape[2:])
            found[name] = _poolable(found[name], found[read].scale / count)
    return found


def _below(grid: Grid, high: float) -> Grid:
    """Return ``grid`` narrowed until no code lies above ``high``: else a Clip cannot be folded."""
    scale = np.float32(min(grid.scale, high / max(grid.top - grid.zero_point, 1)))
    while scale * np.float32(grid.top - grid.zero_point) > high:
        scale = np.nextafter(scale, np.float32(0))
    return replace(grid, scale=float(scale))


def _poolable(grid: Grid, step: float) -> Grid:
    """Return ``grid`` made as coarse as the kernel needs for averages with steps of ``step``.

    Only averages that are nothing next to what they are made of, as behind a norm, ask for a finer
    one, and there is nothing between the steps that it could hold.
    """
    return replace(grid, scale=max(grid.scale, step / LARGEST_RATIO))
