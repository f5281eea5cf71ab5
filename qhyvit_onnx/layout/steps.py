# SPDX-License-Identifier: Apache-2.0
"""The six elementary moves that every data movement is made of.

A map remembers its steps: to play them again on another map is to compose the two.
"""

from dataclasses import dataclass, replace
from typing import Protocol

from qhyvit_onnx.layout.digits import Affine, Digit, number_of, product
from qhyvit_onnx.layout.form import Bound, Form, Lookup, axis_of
from qhyvit_onnx.layout.narrow import narrow
from qhyvit_onnx.layout.regroup import regroup
from qhyvit_onnx.layout.simplification import simplified
from qhyvit_onnx.symbolic.dims import Dim, Shape, settled


class Step(Protocol):
    """One elementary move."""

    def apply(self, form: Form) -> Form:
        """Return ``form`` followed by this move."""


@dataclass(frozen=True, slots=True)
class Regroup:
    """Reshape to ``shape``."""

    shape: Shape

    def apply(self, form: Form) -> Form:
        """Return ``form`` with the borders between its axes moved."""
        return regroup(form, self.shape)


@dataclass(frozen=True, slots=True)
class Permute:
    """Output axis k is axis ``order[k]``."""

    order: tuple[int, ...]

    def apply(self, form: Form) -> Form:
        """Return ``form`` with its axes in another order."""
        return simplified(replace(form, axes=tuple(form.axes[axis] for axis in self.order)))


@dataclass(frozen=True, slots=True)
class Take:
    """Keep ``size`` indices of ``axis``: start, start + step, ..."""

    axis: int
    start: Dim
    step: int
    size: Dim

    def apply(self, form: Form) -> Form:
        """Return ``form`` with a range of one axis kept."""
        return narrow(form, self.axis, self.start, self.step, self.size)


@dataclass(frozen=True, slots=True)
class Pick:
    """Index k of ``axis`` becomes what index ``table[k]`` was."""

    axis: int
    table: tuple[int, ...]

    def apply(self, form: Form) -> Form:
        """Return ``form`` with one axis read through a table."""
        size = product(form.axes[self.axis])
        axis, found = axis_of(len(self.table)), Digit(size)
        lookup = Lookup(number_of(axis), (found,), self.table)
        form = form.rebased(self.axis, Affine(0, {found: 1}), axis)
        return simplified(replace(form, bound_digits=(*form.bound_digits, lookup)))


@dataclass(frozen=True, slots=True)
class Widen:
    """Give ``axis`` a new ``size``, with what was there from index ``before`` on."""

    axis: int
    before: Dim
    size: Dim

    def apply(self, form: Form) -> Form:
        """Return ``form`` with elements outside the source on both sides of one axis."""
        inside = product(form.axes[self.axis])
        axis = axis_of(self.size)
        value = Affine(settled(-self.before), dict.fromkeys(axis, 1))
        form = form.rebased(self.axis, value, axis)
        return simplified(replace(form, bounds=(*form.bounds, Bound(value, inside))))


@dataclass(frozen=True, slots=True)
class Repeat:
    """Lay ``times`` copies of ``axis`` one after the other."""

    axis: int
    times: Dim

    def apply(self, form: Form) -> Form:
        """Return ``form`` with a digit on one axis that no source coordinate depends on."""
        digits = (*axis_of(self.times), *form.axes[self.axis])
        return simplified(form.with_axis(self.axis, digits))
