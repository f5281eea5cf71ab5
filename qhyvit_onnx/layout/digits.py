# SPDX-License-Identifier: Apache-2.0
"""Mixed-radix digits of an index, and sums of digits times strides."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from qhyvit_onnx.symbolic.dims import Dim, is_negative, not_negative, settled


@dataclass(frozen=True, eq=False, slots=True)
class Digit:
    """One digit of a mixed-radix number, 0 <= digit < size; equal only to itself."""

    size: Dim


class Term(NamedTuple):
    """A digit and what one step of it is worth."""

    digit: Digit
    stride: Dim


@dataclass(frozen=True, slots=True)
class Affine:
    """offset + sum of stride * digit; no stride is zero."""

    offset: Dim = 0
    strides: Mapping[Digit, Dim] = field(default_factory=dict)

    def with_digit(self, digit: Digit, by: "Affine") -> "Affine":
        """Return this sum with ``by`` in the place of ``digit``."""
        stride = self.strides.get(digit)
        if stride is None:
            return self
        strides = {d: s for d, s in self.strides.items() if d is not digit}
        for other, step in by.strides.items():
            strides[other] = settled(strides.get(other, 0) + stride * step)
        return Affine(
            settled(self.offset + stride * by.offset), {d: s for d, s in strides.items() if s != 0}
        )

    def upward(self) -> "Affine":
        """Return the sum with every falling digit counted from its other end: strides > 0.

        The digits are the same objects, so the result only serves to look at offset and strides.
        """
        falling = [Term(d, s) for d, s in self.strides.items() if is_negative(s)]
        offset = settled(self.offset + sum(s * (d.size - 1) for d, s in falling))
        return Affine(offset, {d: -s if is_negative(s) else s for d, s in self.strides.items()})

    def span(self) -> tuple[Dim, Dim]:
        """Return the lowest and the highest value."""
        rising = self.upward()
        reach = sum(s * (d.size - 1) for d, s in rising.strides.items())
        return rising.offset, settled(rising.offset + reach)


def product(digits: Iterable[Digit]) -> Dim:
    """Return how many values the digits have together."""
    size: Dim = 1
    for digit in digits:
        size = size * digit.size
    return settled(size)


def places(digits: Iterable[Digit]) -> list[Term]:
    """Return the digits of one number, slowest first, each with what its step is worth."""
    found: list[Term] = []
    stride: Dim = 1
    for digit in reversed(tuple(digits)):
        found.append(Term(digit, stride))
        stride = settled(stride * digit.size)
    return found[::-1]


def number_of(digits: Iterable[Digit]) -> Affine:
    """Return the number that ``digits`` write, slowest first."""
    return Affine(0, dict(places(digits)))


def nested(terms: Mapping[Digit, Dim]) -> list[Term] | None:
    """Return the terms slowest first if no two choices of digits give one sum, else None.

    Each stride, all positive, must pass the reach of every faster digit. Where that cannot be
    decided because of a free dim, the answer is None.
    """
    rest = [Term(digit, stride) for digit, stride in terms.items()]
    found: list[Term] = []
    while rest:
        fastest = next((t for t in rest if all(_passes(o, t) for o in rest if o is not t)), None)
        if fastest is None:
            return None
        found.append(fastest)
        rest = [term for term in rest if term is not fastest]
    return found[::-1]


def _passes(slow: Term, fast: Term) -> bool:
    """Tell whether a step of ``slow`` is worth at least all values of ``fast``."""
    return not_negative(slow.stride - fast.stride * fast.digit.size)
