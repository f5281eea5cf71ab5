# SPDX-License-Identifier: Apache-2.0
"""What became of a source axis."""

from dataclasses import dataclass
from enum import StrEnum

from qhyvit_onnx.layout.digits import Affine, Digit, nested
from qhyvit_onnx.layout.evaluation import roots
from qhyvit_onnx.layout.form import Form
from qhyvit_onnx.symbolic.dims import Dim


class RoleKind(StrEnum):
    """How a source axis lies in the output."""

    WHOLE = "whole"
    """Exactly the source axis, in order, on one output axis by itself."""
    PART = "part"
    """Index = offset + stride * output index, on one axis by itself; also a padded axis, and a
    part of a Concat, where some of the axis lies outside."""
    SPLIT = "split"
    """In order over several axes, slowest first, each holding nothing else: (heads, d)."""
    MERGED = "merged"
    """On axes that hold digits of other source axes, or copies, too."""
    MIXED = "mixed"
    """Cannot be said: out of order, through a table, or across the borders of a reshape."""
    GONE = "gone"
    """Fixed to one index (always so for an axis of size one)."""


@dataclass(frozen=True, slots=True)
class Role:
    """What became of a source axis, and which output axes it lies on, rising."""

    kind: RoleKind
    axes: tuple[int, ...] = ()


def role_of(form: Form, axis: int, size: Dim) -> Role:
    """Return what became of source axis ``axis`` of ``size``."""
    value = form.coordinates[axis]
    digits = roots(form, value)
    axes = tuple(a for a, held in enumerate(form.axes) if not digits.isdisjoint(held))
    if not digits:
        return Role(RoleKind.GONE)
    if digits != set(value.strides):
        return Role(RoleKind.MIXED, axes)
    if not all(digits.issuperset(form.axes[a]) for a in axes):
        return Role(RoleKind.MERGED, axes)
    return Role(_alone(form, value, axes, size), axes)


def _alone(form: Form, value: Affine, axes: tuple[int, ...], size: Dim) -> RoleKind:
    """Return the kind for a coordinate whose digits share no axis with others."""
    order = [digit for a in axes for digit in form.axes[a]]
    if len(axes) > 1:
        return RoleKind.SPLIT if _slowest_first(value, order) else RoleKind.MIXED
    if len(order) > 1:
        return RoleKind.MIXED  # digits on one axis that could not be joined
    bounded = any(order[0] in bound.value.strides for bound in form.bounds)
    whole = value == Affine(0, {order[0]: 1}) and order[0].size == size and not bounded
    return RoleKind.WHOLE if whole else RoleKind.PART


def _slowest_first(value: Affine, order: list[Digit]) -> bool:
    terms = nested(value.strides)
    return terms is not None and [term.digit for term in terms] == order


def axis_alone(form: Form, axis: int) -> int | None:
    """Return the output axis that source axis ``axis`` has to itself, in whatever order."""
    digits = roots(form, form.coordinates[axis])
    axes = [a for a, held in enumerate(form.axes) if not digits.isdisjoint(held)]
    return axes[0] if len(axes) == 1 and digits.issuperset(form.axes[axes[0]]) else None
