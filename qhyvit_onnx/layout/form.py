# SPDX-License-Identifier: Apache-2.0
"""An index map written out: the digits of every output axis, and source coordinates made of them.

Digits of the output axes are free. A reshape that cuts no axis cleanly (Blend) and an arbitrary
list of indices (Lookup) make bound digits: functions of a sum of free ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from qhyvit_onnx.layout.digits import Affine, Digit, number_of
from qhyvit_onnx.symbolic.dims import Dim, Shape, is_negative, not_negative

Axis: TypeAlias = tuple[Digit, ...]
"""The digits of one output axis, slowest first; none for a size of one."""


@dataclass(frozen=True, slots=True)
class Bound:
    """An element comes from the source only where 0 <= value < size; elsewhere it is outside."""

    value: Affine
    size: Dim

    @property
    def holds(self) -> bool:
        """Whether no element is outside."""
        low, high = self.value.span()
        return not_negative(low) and not_negative(self.size - 1 - high)

    @property
    def fails(self) -> bool:
        """Whether every element is outside."""
        low, high = self.value.span()
        return is_negative(high) or not_negative(low - self.size)


@dataclass(frozen=True, slots=True)
class Blend:
    """``parts``, slowest first, are the digits that write ``value``."""

    value: Affine
    parts: Axis


@dataclass(frozen=True, slots=True)
class Lookup:
    """``parts`` holds one digit, equal to ``table[value]``."""

    value: Affine
    parts: Axis
    table: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Form:
    """The digits of every output axis, and everything that is computed from them."""

    axes: tuple[Axis, ...]
    coordinates: tuple[Affine, ...]
    """One for each source axis."""
    bounds: tuple[Bound, ...] = ()
    bound_digits: tuple[Blend | Lookup, ...] = ()

    @classmethod
    def identity(cls, shape: Shape) -> "Form":
        """Return the form in which every element stays where it is."""
        axes = tuple(axis_of(size) for size in shape)
        return cls(axes, tuple(map(number_of, axes)))

    def sums(self) -> Iterator[Affine]:
        """Yield everything that is computed from digits."""
        yield from self.coordinates
        yield from (bound.value for bound in self.bounds)
        yield from (item.value for item in self.bound_digits)

    def rewritten(self, rule: Callable[[Affine], Affine]) -> "Form":
        """Return the form with ``rule`` applied to everything that is computed."""
        return Form(
            self.axes,
            tuple(map(rule, self.coordinates)),
            tuple(replace(bound, value=rule(bound.value)) for bound in self.bounds),
            tuple(replace(item, value=rule(item.value)) for item in self.bound_digits),
        )

    def substituted(self, digit: Digit, by: Affine) -> "Form":
        """Return the form with ``by`` for ``digit`` in everything that is computed."""
        return self.rewritten(lambda value: value.with_digit(digit, by))

    def with_axis(self, axis: int, digits: Axis) -> "Form":
        """Return the form with other digits on one axis."""
        return replace(self, axes=(*self.axes[:axis], digits, *self.axes[axis + 1 :]))

    def rebased(self, axis: int, value: Affine, digits: Axis) -> "Form":
        """Return the form whose ``axis`` has ``digits``, and where ``value`` was its index so far.

        One old digit is replaced by ``value``; several become bound digits.
        """
        old, form = self.axes[axis], self.with_axis(axis, digits)
        if len(old) == 1:
            return form.substituted(old[0], value)
        if not old:
            return form
        return replace(form, bound_digits=(*form.bound_digits, Blend(value, old)))


def axis_of(size: Dim) -> Axis:
    """Return a new axis: one digit, or none where there is nothing to count."""
    return () if size == 1 else (Digit(size),)
