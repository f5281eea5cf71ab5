# SPDX-License-Identifier: Apache-2.0
"""One movement node with what is known of its inputs, and why a rule gives up on it."""

from dataclasses import dataclass
from typing import Any, TypeAlias

from qhyvit_onnx.graph import Node, operand
from qhyvit_onnx.layout.steps import Step
from qhyvit_onnx.symbolic.dims import Dim, Shape, plain
from qhyvit_onnx.symbolic.shapes import Knowledge

Path: TypeAlias = tuple[int, int, tuple[Step, ...]]
"""Index of an input, index of an output, the steps between them."""


class Refusal(Exception):  # noqa: N818
    """A rule cannot map this node; the message is the reason of the Miss."""


@dataclass(frozen=True, slots=True)
class Site:
    """A node, asked for shapes and constant operands; Refusal where they are not known."""

    node: Node
    known: Knowledge

    def source(self, index: int = 0) -> Shape:
        """Return the shape of an input."""
        return self._shape(self.node.inputs[index].name, "input")

    def target(self, index: int = 0) -> Shape:
        """Return the shape of an output."""
        return self._shape(self.node.outputs[index].name, "output")

    def attr(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """Return an attribute."""
        return self.node.attrs.get(name, default)

    def axis(self, default: int = 0) -> int:
        """Return the attribute ``axis``, counted from the front."""
        return self.counted(self.attr("axis", default))

    def counted(self, axis: int) -> int:
        """Return an axis of the first input counted from the front."""
        rank = len(self.source())
        if not -rank <= axis < rank:
            raise Refusal(f"axis {axis} of a tensor of rank {rank}")
        return axis % rank

    def dims(self, index: int, name: str) -> list[Dim] | None:
        """Return an input of integers, numbers or expressions; None when it is absent.

        Operators of older opsets carry it as the attribute ``name``.
        """
        if name in self.node.attrs:
            return [int(item) for item in self.node.attrs[name]]
        tensor = operand(self.node, index)
        if tensor is None:
            return None
        found = self.known.values.get(tensor.name)
        if found is None:
            raise Refusal(f"{name} are computed from data")
        return [plain(item) for item in found.reshape(-1).tolist()]

    def needed(self, index: int, name: str) -> list[Dim]:
        """Return an input of integers that must be there."""
        found = self.dims(index, name)
        if found is None:
            raise Refusal(f"no {name}")
        return found

    def _shape(self, name: str, what: str) -> Shape:
        shape = self.known.shapes.get(name)
        if shape is None:
            raise Refusal(f"{what} shape unknown")
        if any(isinstance(dim, int) and dim == 0 for dim in shape):
            raise Refusal(f"{what} has no elements")
        return shape
