# SPDX-License-Identifier: Apache-2.0
"""Cuts a program into blocks, one after the other, where few tensors pass from one to the next."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from qhyvit_onnx.kernels.program import Program

LARGEST = 6
"""Layers of a block above which it is cut again, where more tensors pass."""

SMALLEST = 2
"""Layers of a block below which it is not cut off."""

MOST = 4
"""Tensors that may pass a cut."""


@dataclass(frozen=True, slots=True)
class Span:
    """The steps of one block, first to last, with what crosses its borders."""

    first: int
    last: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]
    """Units with weights inside."""


@dataclass(frozen=True)
class Cutter:
    """Knows what lives between any two steps."""

    program: Program
    layers: Mapping[int, str]
    """Step to the unit with weights that it is."""
    portable: Collection[str]
    """Tensors that can be kept sample by sample; no cut where anything else passes."""
    fixed: Collection[str]
    """Tensors that are the same for all samples: they pass any cut."""
    ends: Sequence[str]
    """What counts as an output of the program."""
    whole: Sequence[tuple[int, int]] = ()
    """First and last step of what may not be cut: bridges."""

    def spans(self) -> list[Span]:
        """Return the blocks, in order; together they are the program."""
        found: list[tuple[int, int]] = []
        for first, last in self._cut(0, len(self.program.steps) - 1, 1):
            joins = found and not self._layers_in(*found[-1])  # nothing to learn there
            found.append((found.pop()[0] if joins else first, last))
        if len(found) > 1 and not self._layers_in(*found[-1]):
            _, last = found.pop()
            found[-1] = (found[-1][0], last)
        return [self._span(first, last) for first, last in found]

    def _cut(self, first: int, last: int, passing: int) -> list[tuple[int, int]]:
        """Cut between two steps where ``passing`` tensors live; what is still large, again."""
        parts, start = [], first
        for step in range(first, last + 1):
            if step == last or self._good(start, step, passing):
                parts.append((start, step))
                start = step + 1
        if passing == MOST:
            return parts
        return [
            piece
            for part in parts
            for piece in (
                self._cut(*part, passing + 1) if len(self._layers_in(*part)) > LARGEST else [part]
            )
        ]

    def _good(self, start: int, step: int, passing: int) -> bool:
        live = self._living[step]
        fresh = [name for name in live if self._born[name] >= start]
        return (
            len(live) <= passing
            and len(fresh) == 1
            and all(name in self.portable for name in live)
            and len(self._layers_in(start, step)) >= SMALLEST
            and not any(a <= step < b for a, b in self.whole)
        )

    def _layers_in(self, first: int, last: int) -> list[str]:
        return [name for step, name in self.layers.items() if first <= step <= last]

    def _span(self, first: int, last: int) -> Span:
        steps = self.program.steps[first : last + 1]
        reads = dict.fromkeys(name for step in steps for name in step.reads)
        inputs = [n for n in reads if n in self._born and self._born[n] < first]
        at_end = last == len(self.program.steps) - 1
        live = self.ends if at_end else self._living[last]
        outputs = [n for n in dict.fromkeys(live) if n not in self.fixed and self._born[n] >= first]
        return Span(first, last, tuple(inputs), tuple(outputs), tuple(self._layers_in(first, last)))

    @cached_property
    def _born(self) -> dict[str, int]:
        """Return the step that writes each tensor; -1 for what is given."""
        born = dict.fromkeys(self.program.inputs, -1)
        born.update({n: i for i, s in enumerate(self.program.steps) for n in s.outputs if n})
        return born

    @cached_property
    def _living(self) -> list[list[str]]:
        """Return, for each step, the tensors that it or an earlier one wrote and a later reads."""
        last = {name: i for i, step in enumerate(self.program.steps) for name in step.reads}
        last.update(dict.fromkeys(self.ends, len(self.program.steps)))
        changing = [name for name in self._born if name not in self.fixed]
        return [
            [n for n in changing if self._born[n] <= step < last.get(n, -1)]
            for step in range(len(self.program.steps))
        ]
