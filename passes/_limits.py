# SPDX-License-Identifier: Apache-2.0
"""What single integer kernels refuse, or get wrong: seen from the ranges alone."""

from collections.abc import Callable, Mapping
from math import prod

from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.units import Kind, Unit

Stats = Mapping[str, TensorStats]

LARGEST_RATIO = 128.0
"""QLinearGlobalAveragePool stops at 256 input steps an output step and element (MLAS); half of
that, because the search may still narrow the output's range."""


def limit_of(unit: Unit, stats: Stats) -> str:
    """Return why the integer kernel of ``unit`` cannot be trusted on these ranges, else nothing."""
    check = _CHECKS.get(unit.kind)
    return check(unit, stats) if check else ""


def _softmax(unit: Unit, stats: Stats) -> str:
    (tensor,) = unit.inputs
    shape = stats[tensor.name].shape if tensor.name in stats else tensor.shape
    alone = bool(shape) and shape[unit.node.attrs.get("axis", -1)] == 1
    return "QLinearSoftmax overflows on a single element" if alone else ""


def _pool(unit: Unit, stats: Stats) -> str:
    """Refuse averages that are nothing next to what they are made of, as behind a norm."""
    read, written = stats.get(unit.inputs[0].name), stats.get(unit.output.name)
    if unit.node.op != "GlobalAveragePool" or read is None or written is None:
        return ""
    ratio = LARGEST_RATIO * prod(read.shape[2:])
    vanishes = _width(read) >= ratio * _width(written)
    return "its average is zero: beyond QLinearGlobalAveragePool" if vanishes else ""


def _width(seen: TensorStats) -> float:
    """Return the width of the range that a grid covers: zero is always inside."""
    return max(seen.high, 0.0) - min(seen.low, 0.0)


_CHECKS: Mapping[Kind, Callable[[Unit, Stats], str]] = {Kind.SOFTMAX: _softmax, Kind.POOL: _pool}
