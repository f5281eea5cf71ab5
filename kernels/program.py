# SPDX-License-Identifier: Apache-2.0
"""A graph as the kernels see it: steps in the order they run, constants, inputs and outputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.errors import ConfigError

Array: TypeAlias = NDArray[np.generic]

_RESHAPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_CLOSING = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Step:
    """One operation; a tensor is named by a string, an absent one by the empty string."""

    name: str
    """Unique in its program."""
    op: str
    domain: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """Numbers, strings, lists of these, and arrays; a body (If, Loop, Scan) is kept as it came."""
    captured: tuple[str, ...] = ()
    """What a body reads from outside without naming it as an input."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Return every tensor the step needs."""
        return tuple(name for name in (*self.inputs, *self.captured) if name)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Program:
    """Steps sorted so that each one comes after the steps whose outputs it reads."""

    steps: tuple[Step, ...]
    constants: Mapping[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    """Version of the default operator set."""
    domains: Mapping[str, int] = field(default_factory=dict)
    """Versions of the other operator sets."""

    def between(self, inputs: Sequence[str], outputs: Sequence[str]) -> "Program":
        """Return the part that computes ``outputs`` from ``inputs``, with the constants it reads.

        Any tensor may be an input, a constant too: what computes it is then left out.

        Raises:
            ConfigError: a name is no tensor of the program, or something that is neither given nor
                computed is needed.

        """
        known = self.names()
        for name in (*inputs, *outputs):
            if name not in known:
                raise ConfigError(f"no tensor of the graph is named {name!r}")
        given, needed = set(inputs), set(outputs) - set(inputs)
        kept: list[Step] = []
        for step in reversed(self.steps):
            if needed.isdisjoint(step.outputs):
                continue
            kept.append(step)
            needed.difference_update(step.outputs)
            needed.update(name for name in step.reads if name not in given)
        constants = {name: self.constants[name] for name in needed if name in self.constants}
        if missing := sorted(needed - set(constants)):
            raise ConfigError(
                f"tensor {missing[0]!r} is needed to compute {list(outputs)}",
                hint=f"give it besides {list(inputs)}",
            )
        return Program(
            steps=tuple(reversed(kept)),
            constants=constants,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            opset=self.opset,
            domains=self.domains,
        )

    def closings(self) -> dict[str, Step | None]:
        """Return by output the Softmax, LogSoftmax or Sigmoid it comes from, reshaped at most."""
        makers = {name: step for step in self.steps for name in step.outputs}
        found: dict[str, Step | None] = {}
        for output in self.outputs:
            step = makers.get(output)
            while step is not None and step.op in _RESHAPING and step.domain in {"", "ai.onnx"}:
                step = makers.get(step.inputs[0])
            closes = step is not None and step.domain in {"", "ai.onnx"} and step.op in _CLOSING
            found[output] = step if closes else None
        return found

    def names(self) -> set[str]:
        """Return the name of every tensor."""
        written = {name for step in self.steps for name in step.outputs if name}
        return written.union(self.constants, self.inputs)


Opaque: TypeAlias = Callable[[Step, Sequence[Array | None]], list[Array]]
"""Runs a step outside torch: (step, arrays of its inputs, then of what it captures) -> outputs."""
