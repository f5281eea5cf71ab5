# SPDX-License-Identifier: Apache-2.0
"""An index map relates an output tensor to the tensor that its elements come from."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sympy
from numpy.typing import NDArray

from qhyvit_onnx.layout.digits import Digit, places
from qhyvit_onnx.layout.evaluation import Forward, backward, is_bijection, split
from qhyvit_onnx.layout.form import Form
from qhyvit_onnx.layout.pulling import pulled
from qhyvit_onnx.layout.roles import Role, axis_alone, role_of
from qhyvit_onnx.layout.steps import Step
from qhyvit_onnx.symbolic.dims import Shape


@dataclass(frozen=True, slots=True)
class IndexMap:
    """Output index to source index, for every element of the output.

    Elements that no source element goes to (padding, the other parts of a Concat) are outside.
    """

    source: Shape
    shape: Shape
    """Of the output."""
    steps: tuple[Step, ...]
    """The elementary moves that it is made of."""
    form: Form
    """What they come to."""

    @classmethod
    def identity(cls, shape: Shape) -> "IndexMap":
        """Return the map that leaves every element where it is."""
        return cls(shape, shape, (), Form.identity(shape))

    @classmethod
    def of(cls, source: Shape, steps: Iterable[Step], shape: Shape) -> "IndexMap":
        """Return the map of ``steps`` from a tensor of shape ``source`` to one of ``shape``."""
        return cls.identity(source).then(cls(source, shape, tuple(steps), Form.identity(source)))

    def then(self, later: "IndexMap") -> "IndexMap":
        """Return the map of A to C, given this one of A to B and ``later`` of B to C."""
        if self.shape != later.source:
            raise ValueError(f"a map to {self.shape} cannot go on from {later.source}")
        form = self.form
        for step in later.steps:
            form = step.apply(form)
        return IndexMap(self.source, later.shape, (*self.steps, *later.steps), form)

    def source_of_output(self) -> tuple[sympy.Expr, ...]:
        """Return the source coordinates, in the symbols of ``coordinates("o", rank)``.

        They mean nothing where ``inside`` is false.
        """
        forward = self._forward()
        return tuple(sympy.sympify(forward.sum(value)) for value in self.form.coordinates)

    def inside(self) -> sympy.Basic:
        """Return the condition, in the same symbols, for an output element to have a source."""
        forward = self._forward()
        values = [(forward.sum(bound.value), bound.size) for bound in self.form.bounds]
        return sympy.And(
            *(test for v, size in values for test in (sympy.Ge(v, 0), sympy.Lt(v, size)))
        )

    def _forward(self) -> Forward:
        free: dict[Digit, sympy.Expr] = {}
        for digits, index in zip(self.form.axes, coordinates("o", len(self.shape)), strict=True):
            free.update(split(index, digits))
        return Forward(self.form, free)

    def output_of_source(self) -> tuple[sympy.Expr, ...] | None:
        """Return the output coordinates, in the symbols of ``coordinates("i", rank)``.

        None where a source element goes to several places, and where a table was looked up. For
        source elements that go nowhere the coordinates mean nothing.
        """
        found = backward(self.form, coordinates("i", len(self.source)))
        digits = [digit for axis in self.form.axes for digit in axis]
        if found is None or not all(digit in found for digit in digits):
            return None
        return tuple(
            sympy.sympify(sum(stride * found[digit] for digit, stride in places(axis)))
            for axis in self.form.axes
        )

    @property
    def is_permutation(self) -> bool:
        """Whether every source element goes to exactly one place, and nothing else is there."""
        return is_bijection(self.form, dict(enumerate(self.source)))

    @property
    def is_empty(self) -> bool:
        """Whether surely no source element goes anywhere."""
        return any(bound.fails for bound in self.form.bounds)

    def role(self, axis: int) -> Role:
        """Return where source axis ``axis`` went; negative axes count from the end."""
        axis = range(len(self.source))[axis]
        return role_of(self.form, axis, self.source[axis])

    def alone(self, axis: int) -> int | None:
        """Return the output axis that holds source axis ``axis`` and nothing else, in any order.

        After a channel shuffle, whose role is MIXED, this still is the channel axis. None where
        there is no such axis.
        """
        return axis_alone(self.form, range(len(self.source))[axis])

    def pull(self, values: NDArray[Any], fill: Any) -> NDArray[Any] | None:  # noqa: ANN401
        """Return ``values`` of the source as the output sees them: out[o] = values[source(o)].

        Shapes:
            values: broadcastable against ``source``, of the same rank, 1 on axes along which they
            do not vary. Returned: broadcastable against ``shape``, of its rank, ``fill`` where the
            output is outside.

        Error:
            ValueError for values of another shape. None when an axis along which the result varies
            has no number for its size, or when it would hold more than 2**22 elements.
        """
        return pulled(self.form, self.source, values, fill)


def coordinates(letter: str, rank: int) -> tuple[sympy.Symbol, ...]:
    """Return the symbols of a tensor's coordinates: ``o0, o1, ...`` for ``o``."""
    return tuple(
        sympy.Symbol(f"{letter}{axis}", integer=True, nonnegative=True) for axis in range(rank)
    )
