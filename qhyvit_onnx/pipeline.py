# SPDX-License-Identifier: Apache-2.0
"""What the compiler does, in order: one literal tuple, checked before it runs."""

import resource
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qhyvit_onnx.config import CompileConfig, Effort, Folding, Guard, Learning, Scope
from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.effort import GET_TORCH, effort_of
from qhyvit_onnx.errors import ConfigError, PassError
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes.calibrate import Calibrate
from qhyvit_onnx.passes.detect_bridges import DetectBridges
from qhyvit_onnx.passes.fold_norms import FoldNorms
from qhyvit_onnx.passes.fold_ranges import FoldRanges
from qhyvit_onnx.passes.insert_qdq import InsertQdq
from qhyvit_onnx.passes.layout import Layout
from qhyvit_onnx.passes.normalise import Normalise
from qhyvit_onnx.passes.place import Place
from qhyvit_onnx.passes.reconstruct import Reconstruct
from qhyvit_onnx.passes.search_scales import SearchScales
from qhyvit_onnx.passes.sense import Sense
from qhyvit_onnx.passes.verify import Verify
from qhyvit_onnx.passes.weigh import Weigh
from qhyvit_onnx.recipes import Additions, find_recipe
from qhyvit_onnx.state import Fact, State


def default_pipeline(config: CompileConfig, target: Target) -> tuple[Pass, ...]:
    """Return every pass in order. Read this to know what the compiler does.

    Error:
        ConfigError when the recipe needs more effort than is made.
    """
    config = as_recipe(config)
    return (
        Normalise(),
        FoldNorms(config.folding.scope),
        Layout(),
        DetectBridges(),
        Calibrate(),
        FoldRanges(config.folding),
        Weigh(),
        SearchScales(target, config.search),
        Sense(target, config.guard),
        Place(target, config.guard),
        Reconstruct(config.learning),
        InsertQdq(),
        Verify(target, config.verification),
    )


def as_recipe(config: CompileConfig) -> CompileConfig:
    """Return ``config`` with what its recipe settles: a published one takes none of our additions.

    Error:
        ConfigError when the recipe looks at layers and no gradients will be gathered.
    """
    recipe = find_recipe(config.recipe)
    if recipe.needs_evidence and effort_of(config) is Effort.FAST:
        raise ConfigError(
            f"recipe {recipe.name} needs gradients, effort fast has none", hint=GET_TORCH
        )
    if recipe.additions is Additions.CONFIGURED:
        return config
    return replace(
        config,
        folding=Folding(scope=Scope.OFF),
        guard=Guard(samples=0),
        learning=Learning(samples=0, steps=0, finish=0),
    )


@dataclass(frozen=True, slots=True)
class Step:
    """One pass that ran."""

    name: str
    outcome: Outcome
    seconds: float
    peak_mb: float
    """Most memory the process has held so far; megabytes."""


class Watcher:
    """The only hook: told when a pass starts and ends, and how far it is. Does nothing itself."""

    def opened(self, calibration: Feeds, held_back: Feeds | None, target: Target) -> None:
        """Hear which data was opened and which target was chosen, before anything long begins."""

    def planned(self, passes: Sequence[Pass]) -> None:
        """Hear what will run."""

    def started(self, pass_: Pass) -> None:
        """Hear that a pass begins."""

    def progressed(self, done: int, total: int) -> None:
        """Hear how far the running pass is."""

    def finished(self, step: Step, state: State) -> None:
        """Hear that a pass ended; ``state`` is valid here."""


def check_order(passes: Sequence[Pass], known: Iterable[Fact[Any]] = ()) -> None:
    """Raise PassError unless each pass's needs are ``known``, or given by an earlier one."""
    given: set[Fact[Any]] = set(known)
    for item in passes:
        if missing := [fact.name for fact in item.needs if fact not in given]:
            raise PassError(f"{item.name} needs {missing}, which no earlier pass gives")
        given.update(item.gives)


def run(passes: Sequence[Pass], state: State, watcher: Watcher) -> list[Step]:
    """Run ``passes`` on ``state``; return what each did, how long it took, and peak memory."""
    watcher.planned(passes)
    return go_on(passes, state, watcher)


def go_on(passes: Sequence[Pass], state: State, watcher: Watcher) -> list[Step]:
    """Run ``passes``, which were planned already."""
    check_order(passes, state.facts)
    state.tick = watcher.progressed
    steps = []
    for item in passes:
        watcher.started(item)
        start = time.perf_counter()
        outcome = item.run(state)
        if missing := [fact.name for fact in item.gives if not state.has(fact)]:
            raise PassError(f"{item.name} did not give {missing}")
        steps.append(Step(item.name, outcome, time.perf_counter() - start, peak_megabytes()))
        watcher.finished(steps[-1], state)
    return steps


def peak_megabytes() -> float:
    """Return the most resident memory this process has held, in megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
