# SPDX-License-Identifier: Apache-2.0
"""Element by element, between numbers: one, two or many operands, numpy broadcasting."""

from functools import reduce

import torch
from torch import Tensor

from qhyvit_onnx.kernels.ops.table import Kernel, kernel


@kernel("Div", since=7)
def divide(a: Tensor, b: Tensor) -> Tensor:
    """Divide; integers truncate towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@kernel("Pow", since=7)
def power(base: Tensor, exponent: Tensor) -> Tensor:
    """Raise to a power; the result has the type of the base."""
    if exponent.ndim == 0 and exponent.is_cpu and not exponent.requires_grad:
        return torch.pow(base, exponent.item()).to(
            base.dtype
        )  # torch squares faster than it raises
    return torch.pow(base, exponent).to(base.dtype)


@kernel("Mod", since=10)
def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Return the remainder; its sign is that of ``b``, or, with ``fmod``, that of ``a``."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@kernel("Clip", since=6)
def clip_between(x: Tensor, *, min: float | None = None, max: float | None = None) -> Tensor:  # noqa: A002
    """Clip to the bounds that are given, as attributes."""
    return x if min is None and max is None else torch.clamp(x, min, max)


@kernel("Clip", since=11)
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clip to the bounds that are given, as tensors; the upper one wins where they cross."""
    return x if low is None and high is None else torch.clamp(x, low, high)


@kernel("Max", since=6)
def maximum(*operands: Tensor) -> Tensor:
    """Return the largest operand, element by element."""
    return reduce(torch.maximum, operands)


@kernel("Min", since=6)
def minimum(*operands: Tensor) -> Tensor:
    """Return the smallest operand, element by element."""
    return reduce(torch.minimum, operands)


@kernel("Sum", since=6)
def total(*operands: Tensor) -> Tensor:
    """Add any number of operands."""
    return reduce(torch.add, operands)


@kernel("Mean", since=6)
def mean(*operands: Tensor) -> Tensor:
    """Average any number of operands."""
    return reduce(torch.add, operands) / len(operands)


KERNELS = (
    Kernel("Abs", 6, torch.abs),
    Kernel("Acos", 7, torch.acos),
    Kernel("Acosh", 9, torch.acosh),
    Kernel("Add", 7, torch.add),
    Kernel("Asin", 7, torch.asin),
    Kernel("Asinh", 9, torch.asinh),
    Kernel("Atan", 7, torch.atan),
    Kernel("Atanh", 9, torch.atanh),
    Kernel("Ceil", 6, torch.ceil),
    Kernel("Cos", 7, torch.cos),
    Kernel("Cosh", 9, torch.cosh),
    Kernel("Erf", 9, torch.erf),
    Kernel("Exp", 6, torch.exp),
    Kernel("Floor", 6, torch.floor),
    Kernel("Log", 6, torch.log),
    Kernel("Mul", 7, torch.mul),
    Kernel("Neg", 6, torch.neg),
    Kernel("Reciprocal", 6, torch.reciprocal),
    Kernel("Round", 11, torch.round),  # half to even, as ONNX asks
    Kernel("Sign", 9, torch.sign),
    Kernel("Sin", 7, torch.sin),
    Kernel("Sinh", 9, torch.sinh),
    Kernel("Sqrt", 6, torch.sqrt),
    Kernel("Sub", 7, torch.sub),
    Kernel("Tan", 7, torch.tan),
    divide,
    power,
    modulo,
    clip_between,
    clip,
    maximum,
    minimum,
    total,
    mean,
)
