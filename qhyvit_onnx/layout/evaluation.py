# SPDX-License-Identifier: Apache-2.0
"""An index map worked out, forward and backward, on sympy expressions or integer arrays alike."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import sympy

from qhyvit_onnx.layout.digits import Affine, Digit, Term, nested, places, product
from qhyvit_onnx.layout.form import Axis, Blend, Form, Lookup

Number: TypeAlias = Any
"""An int, a sympy expression or an integer array; ``//`` and ``%`` round down on all of them."""


class TableEntry(sympy.Function):  # type: ignore[misc]
    """``TableEntry(k, t0, t1, ...)`` is ``t_k``; stays as it is until k is a number."""

    is_integer = True

    @classmethod
    def eval(cls, index: sympy.Expr, *table: sympy.Expr) -> sympy.Expr | None:
        """Return the entry where the index is a number."""
        return table[int(index)] if index.is_Integer else None


def entry(table: tuple[int, ...], index: Number) -> Number:
    """Return ``table[index]`` as an expression."""
    return TableEntry(index, *table)


class Forward:
    """Sums of digits from the values of the free digits."""

    def __init__(
        self,
        form: Form,
        free: Mapping[Digit, Number],
        look_up: Callable[[tuple[int, ...], Number], Number] = entry,
    ) -> None:
        """Take the values of the free digits; bound ones are worked out when asked for."""
        self._values = dict(free)
        self._look_up = look_up
        self._makers = {part: item for item in form.bound_digits for part in item.parts}

    def sum(self, value: Affine) -> Number:
        """Return the value of a sum."""
        return value.offset + sum(s * self.digit(d) for d, s in value.strides.items())

    def digit(self, digit: Digit) -> Number:
        """Return the value of a digit."""
        if digit not in self._values:
            maker = self._makers[digit]
            number = self.sum(maker.value)
            if isinstance(maker, Lookup):
                self._values[digit] = self._look_up(maker.table, number)
            else:
                self._values.update(split(number, maker.parts))
        return self._values[digit]


def split(number: Number, digits: Axis) -> dict[Digit, Number]:
    """Return the digits that write ``number``; it must be below the product of their sizes."""
    found = {}
    for index, (digit, stride) in enumerate(places(digits)):
        quotient = number if stride == 1 else number // stride
        found[digit] = quotient % digit.size if index else quotient
    return found


def roots(form: Form, value: Affine) -> set[Digit]:
    """Return the free digits that a sum depends on."""
    made = {part for item in form.bound_digits for part in item.parts}
    return {digit for each in needed_for(form, value) for digit in each.value.strides} - made


def needed_for(form: Form, value: Affine) -> list[Blend | Lookup]:
    """Return what has to be worked out for a sum: a blend into it alone, and all blends below."""
    makers = {part: item for item in form.bound_digits for part in item.parts}
    found: list[Blend | Lookup] = [Blend(value, ())]
    for item in found:  # grows while it is walked
        below = (makers[digit] for digit in item.value.strides if digit in makers)
        found.extend(maker for maker in below if all(maker is not known for known in found))
    return found


def backward(form: Form, coordinates: tuple[Number, ...]) -> dict[Digit, Number] | None:
    """Return the value of every digit from source coordinates; None where they do not decide it.

    Coordinates of elements that the map drops give numbers without meaning.
    """
    found: dict[Digit, Number] = {}
    for value, coordinate in zip(form.coordinates, coordinates, strict=True):
        if not _solve(value, coordinate, found):
            return None
    for item in form.bound_digits:  # an early one counts in parts of later ones
        if isinstance(item, Lookup) or not all(part in found for part in item.parts):
            return None
        number = sum(stride * found[digit] for digit, stride in places(item.parts))
        if not _solve(item.value, number, found):
            return None
    return found


def _solve(value: Affine, number: Number, found: dict[Digit, Number]) -> bool:
    """Add the digits of a sum that equals ``number``; False if they are not decided by it."""
    rising = value.upward()
    terms = nested(rising.strides)
    if terms is None:
        return False
    rest = number - rising.offset
    for digit, stride in terms:
        quotient = rest if stride == 1 else rest // stride
        falls = value.strides[digit] != stride
        found[digit] = digit.size - 1 - quotient if falls else quotient
        rest = 0 if stride == 1 else rest % stride
    return True


def is_bijection(form: Form, source: Mapping[int, Number]) -> bool:
    """Tell whether every element of the source goes to exactly one place, and nothing else does."""
    sums = [(value, source[axis]) for axis, value in enumerate(form.coordinates)]
    sums += [(item.value, _values_of(item)) for item in form.bound_digits]
    used = [digit for value, _ in sums for digit in value.strides]
    free = [digit for axis in form.axes for digit in axis]
    made = [part for item in form.bound_digits for part in item.parts]
    once = len(used) == len(set(used)) and set(used) == {*free, *made}
    return once and not form.bounds and all(_covers(value, size) for value, size in sums)


def _values_of(item: Blend | Lookup) -> Number:
    """Return how many values the number may have; none for a table that is no permutation."""
    if isinstance(item, Blend):
        return product(item.parts)
    permutes = sorted(item.table) == list(range(len(item.table)))
    return len(item.table) if permutes and item.parts[0].size == len(item.table) else 0


def _covers(value: Affine, size: Number) -> bool:
    """Tell whether a sum takes every value from 0 to size - 1 once."""
    rising = value.upward()
    terms: list[Term] | None = nested(rising.strides)
    if terms is None or rising.offset != 0:
        return False
    expected = places(term.digit for term in terms)
    return terms == expected and product(rising.strides) == size
