# SPDX-License-Identifier: Apache-2.0
"""One node of shape arithmetic, with what is known of its inputs.

An array of a native dtype is known; one of dtype object holds at least one sympy expression. A rule
that cannot say raises Unsure: nothing is ever guessed, least of all a batch of one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

from qhyvit_onnx.graph import Node, axes_of, is_absent
from qhyvit_onnx.symbolic.dims import Shape, is_number

Element: TypeAlias = Any
"""An int, a float, a bool, or a sympy expression."""
Value: TypeAlias = NDArray[Any]

LARGEST = 64
"""Elements of the largest array followed: shapes, indices, sizes."""


class Unsure(Exception):  # noqa: N818
    """A rule cannot say what the value is."""


@dataclass(frozen=True, slots=True)
class Call:
    """One node with what is known of its inputs."""

    node: Node
    args: list[Value | None]
    shapes: list[Shape | None]
    elem: int
    """ONNX element type of the first output."""

    def attr(self, name: str, default: Element = None) -> Element:
        """Return an attribute."""
        return self.node.attrs.get(name, default)

    def arg(self, index: int) -> Value:
        """Return the value of an input."""
        found = self.args[index] if index < len(self.args) else None
        if found is None:
            raise Unsure
        return found

    def ints(self, index: int) -> list[int] | None:
        """Return a flat list of known integers; None when the input is absent."""
        if index >= len(self.node.inputs) or is_absent(self.node.inputs[index]):
            return None
        found = self.arg(index)
        if found.dtype == object:
            raise Unsure
        return [int(item) for item in found.reshape(-1)]

    def axes(self) -> list[int] | None:
        """Return the axes, attribute or input."""
        given = axes_of(self.node)
        return given if given is not None else self.ints(1)


Rule: TypeAlias = Callable[[Call], Value]


def whole(value: Element) -> Element:
    """Return an element as an exact integer: floats with symbols are followed only that far."""
    if is_number(value):
        if value != int(value):
            raise Unsure
        return int(value)
    if not value.is_integer:
        raise Unsure
    return value
