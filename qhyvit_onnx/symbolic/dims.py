# SPDX-License-Identifier: Apache-2.0
"""Dimensions: a number, or an expression of the free input dims (sympy)."""

from math import prod
from typing import Any, TypeAlias

import sympy

Dim: TypeAlias = Any
"""An int, or a sympy expression that is a positive integer."""
Shape: TypeAlias = tuple[Dim, ...]

ANONYMOUS = frozenset({"", "?", "-1", "None", "unknown"})
"""What exporters write for a dim without a name: two of these need not be equal."""


class Symbols:
    """The symbols of one graph, and a text for every expression, as ONNX dim_params want it."""

    def __init__(self) -> None:
        """Start without any symbol."""
        self._named: dict[str, Dim] = {}
        self._texts: dict[Dim, str] = {}
        self._dims: dict[str, Dim] = {}

    def named(self, name: str) -> Dim:
        """Return the symbol of a free dim; anonymous dims each get their own."""
        if name in ANONYMOUS or name.startswith("unk__"):
            return self.fresh()
        return self._named.setdefault(name, sympy.Symbol(name, positive=True, integer=True))

    def fresh(self) -> Dim:
        """Return a dim that is equal to no other one."""
        return sympy.Dummy("d", positive=True, integer=True)

    def unknown(self) -> Dim:
        """Return an integer of which nothing is known, not even its sign."""
        return sympy.Dummy("v", integer=True)

    def standing_for(self, value: Dim) -> Dim:
        """Return ``value``, the size of something that exists, in a form that counts as positive.

        Where sympy cannot tell that it is, one symbol stands for it wherever it occurs.
        """
        value = settled(value)
        if is_number(value) or value.is_positive:
            return value
        return sympy.Symbol(f"({value})", positive=True, integer=True)

    def text(self, dim: Dim) -> str:
        """Return a name that stands for ``dim`` and for nothing else."""
        text = self._texts.setdefault(dim, f"e{len(self._texts)}")
        self._dims[text] = dim
        return text

    def dim(self, text: str) -> Dim:
        """Return the dim that ``text`` stands for."""
        return self._dims[text] if text in self._dims else self.fresh()


def plain(value: Dim) -> Dim:
    """Return sympy numbers as Python numbers, everything else as it is."""
    if isinstance(value, sympy.Integer):
        return int(value)
    return value


def is_number(value: Dim) -> bool:
    """Tell whether ``value`` holds no symbol."""
    return not isinstance(value, sympy.Basic)


def shown(dim: Dim) -> int | str | None:
    """Return ``dim`` for a reader: None when it has no name that a user would know."""
    if is_number(dim):
        return int(dim)
    return None if dim.atoms(sympy.Dummy) else str(dim)


def count(shape: Shape) -> Dim:
    """Return the number of elements."""
    return plain(prod(shape))


def quotient(a: Dim, b: Dim) -> Dim | None:
    """Return a / b when that is a positive integer whatever the symbols are, else None."""
    if is_number(a) and is_number(b):
        return a // b if b and a % b == 0 else None
    ratio = plain(sympy.cancel(sympy.sympify(a) / b))
    return ratio if is_number(ratio) or (ratio.is_integer and ratio.is_positive) else None


def settled(value: Dim) -> Dim:
    """Return ``value`` in the one form in which equal sums and products look equal."""
    return value if is_number(value) else plain(sympy.expand(value))


def is_negative(value: Dim) -> bool:
    """Tell whether ``value`` is surely below zero."""
    return not_negative(-1 - value)


def not_negative(value: Dim) -> bool:
    """Tell whether ``value`` is surely zero or more.

    sympy only knows that a dim is positive; with every dim written as one more than a number that
    may be zero, ``d - 1`` and ``64*d - 64`` are decided too.
    """
    value = settled(value)
    if is_number(value):
        return bool(value >= 0)
    if value.is_nonnegative is not None:
        return bool(value.is_nonnegative)
    dims = [symbol for symbol in value.free_symbols if symbol.is_positive]
    above = {dim: 1 + sympy.Dummy(nonnegative=True, integer=True) for dim in dims}
    return bool(sympy.expand(value.subs(above)).is_nonnegative)
