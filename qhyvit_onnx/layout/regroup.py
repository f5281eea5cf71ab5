# SPDX-License-Identifier: Apache-2.0
"""Reshape as regrouping: the digits stay in order, only the borders between axes move."""

from collections.abc import Sequence
from dataclasses import replace

from qhyvit_onnx.layout.digits import Affine, Digit, number_of
from qhyvit_onnx.layout.form import Axis, Blend, Form, axis_of
from qhyvit_onnx.layout.simplification import simplified
from qhyvit_onnx.symbolic.dims import Dim, Shape, quotient


def regroup(form: Form, shape: Shape) -> Form:
    """Return ``form`` reshaped to ``shape``.

    Axes are filled from the left, then from the right: a digit goes whole, or is split in two where
    a border falls cleanly. What is left between has no clean borders: its old digits become the
    quotients and remainders of one number, the index into the block.
    """
    cutting = _Cutting(form, shape)
    cutting.fill()
    if not cutting.rest and not cutting.open:
        return simplified(replace(cutting.form, axes=cutting.axes()))
    block = cutting.as_block()
    loose = simplified(block)
    if _digits(loose) != _digits(block):  # joined or unblended: the borders may be clean now
        return regroup(loose, shape)
    return simplified(cutting.blended())


def _digits(form: Form) -> list[Axis]:
    return [axis for axis in form.axes if axis]


class _Cutting:
    """Digits not placed yet, and the axes not filled yet between the two ends."""

    def __init__(self, form: Form, shape: Shape) -> None:
        self.form = form
        self.rest = [digit for axis in form.axes for digit in axis]
        self.open = list(shape)
        self._left: list[Axis] = []
        self._right: list[Axis] = []

    def fill(self) -> None:
        while self.open and (axis := self._cut(self.open[0], last=False)) is not None:
            self._left.append(axis)
            self.open.pop(0)
        while self.open and (axis := self._cut(self.open[-1], last=True)) is not None:
            self._right.insert(0, axis)
            self.open.pop()

    def axes(self, between: Sequence[Axis] = ()) -> tuple[Axis, ...]:
        return (*self._left, *between, *self._right)

    def as_block(self) -> Form:
        return replace(self.form, axes=self.axes([tuple(self.rest)]))

    def blended(self) -> Form:
        """Return the form in which the unplaced digits are read from one new number."""
        between = [axis_of(size) for size in self.open]
        value = number_of(digit for axis in between for digit in axis)
        form = replace(self.form, axes=self.axes(between))
        if len(self.rest) == 1:
            return form.substituted(self.rest[0], value)
        blend = Blend(value, tuple(self.rest))
        return replace(form, bound_digits=(*form.bound_digits, blend))

    def _cut(self, size: Dim, *, last: bool) -> Axis | None:
        """Take digits worth ``size`` off one end; None, and nothing taken, where none fit."""
        rest, taken = list(self.rest), []
        while size != 1:
            at = -1 if last else 0
            if not rest:
                return None
            digit = rest[at]
            if (behind := quotient(size, digit.size)) is not None:
                taken.append(rest.pop(at))
                size = behind
            elif (over := quotient(digit.size, size)) is not None:
                inner, outer = Digit(size), Digit(over)
                self._split(digit, (outer, inner) if last else (inner, outer))
                rest[at] = outer
                taken.append(inner)
                size = 1
            else:
                return None
        self.rest = rest
        return tuple(reversed(taken) if last else taken)

    def _split(self, digit: Digit, parts: Axis) -> None:
        value: Affine = number_of(parts)
        self.form = self.form.substituted(digit, value)
