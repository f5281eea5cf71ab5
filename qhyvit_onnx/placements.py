# SPDX-License-Identifier: Apache-2.0
"""A pipeline around its placement: what runs once, and what runs again for another placement."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Self

from qhyvit_onnx.config import CompileConfig, Extent
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.facts import VERIFICATION
from qhyvit_onnx.passes._base import Pass
from qhyvit_onnx.passes.place import Place
from qhyvit_onnx.passes.verify import Verify
from qhyvit_onnx.pipeline import Step, Watcher, check_order, go_on, run
from qhyvit_onnx.speed_records import Latency, PointRecord
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import AUTO

OUTRUN = "int8 was slower than float as a whole, measured on this machine"
"""Why every unit stays float then."""


@dataclass(frozen=True, slots=True)
class Made:
    """A finished compilation, and what was tried on the way."""

    state: State
    steps: list[Step]
    front: list[PointRecord] = field(default_factory=list)
    outrun: Latency | None = None
    """What int8 took, if float was faster and is emitted instead."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The passes of a pipeline, taken apart at placement."""

    before: list[Pass]
    place: Place
    between: list[Pass]
    verify: Verify

    @classmethod
    def of(cls, passes: Sequence[Pass]) -> Self:
        """Take ``passes`` apart; ConfigError when they place nothing, or prove nothing."""
        for at, (place, _) in enumerate(pairwise(passes)):
            if isinstance(place, Place) and isinstance(verify := passes[-1], Verify):
                return cls(list(passes[:at]), place, list(passes[at + 1 : -1]), verify)
        raise ConfigError("these passes place nothing that could be swept")

    def once(self, state: State, watcher: Watcher) -> Made:
        """Run all passes; ``state`` is left as it was before placement."""
        after = [self.place, *self.between, self.verify]
        check_order([*self.before, *after], state.facts)
        watcher.planned([*self.before, *after])
        steps = go_on(self.before, state, watcher)
        fork = state.fork()
        return Made(fork, [*steps, *go_on(after, fork, watcher)])

    def in_float(self, state: State, made: Made, watcher: Watcher) -> Made:
        """Return ``made`` with every unit in float; ``state`` is as it was before placement."""
        fork = state.fork()
        place = replace(self.place, refused=OUTRUN)
        steps = run([place, *self.between, self.verify], fork, watcher)
        outrun = Latency.of(made.state.get(VERIFICATION).times)
        return Made(fork, [*made.steps, *steps], made.front, outrun)


def is_outrun(made: Made, config: CompileConfig) -> bool:
    """Tell whether float is faster on this machine, and nobody said what to emit regardless."""
    asked = config.target != AUTO or config.placement is Extent.FULL or config.force_int8
    return not asked and made.state.get(VERIFICATION).slower
