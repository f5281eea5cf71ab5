# SPDX-License-Identifier: Apache-2.0
"""The pipeline: one literal tuple, whose order is checked and whose steps are told."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from qhyvit_onnx.config import CompileConfig, Effort, Folding, Guard, Scope, Search, Verification
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.errors import PassError
from qhyvit_onnx.facts import GRIDS, STATS
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.pipeline import Watcher, check_order, default_pipeline, peak_megabytes, run
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import TARGETS, find_target

MODEL = "g (float[1, 2] x) => (float[1, 2] y) { y = Relu (x) }"
ORDER = [
    "normalise", "fold-norms", "layout", "detect-bridges", "calibrate", "fold-ranges", "weigh",
    "search-scales", "sense", "place", "reconstruct", "insert-qdq", "verify",
]  # fmt: skip
OFF = {"weigh", "reconstruct"}
"""What effort fast turns off."""


@dataclass(frozen=True)
class Gives(Pass):
    """Gives the statistics, or forgets to."""

    forgets: bool = False

    name = "gives"
    summary = "for tests"
    gives = (STATS,)

    def run(self, state):
        if not self.forgets:
            state.put(STATS, {})
        return Outcome(0, "gave")


@dataclass(frozen=True)
class Needs(Pass):
    """Needs the statistics."""

    name = "needs"
    summary = "for tests"
    needs = (STATS,)

    def run(self, state):
        assert state.get(STATS) == {}
        state.tick(1, 2)
        return Outcome(3, "used")


class Listener(Watcher):
    """Writes down what it hears."""

    def __init__(self):
        self.heard = []

    def planned(self, passes):
        self.heard.append(("planned", len(passes)))

    def started(self, pass_):
        self.heard.append(("started", pass_.name))

    def progressed(self, done, total):
        self.heard.append(("progressed", (done, total)))

    def finished(self, step, state):
        self.heard.append(("finished", step.name))
        state.model()  # valid here


@pytest.fixture(params=TARGETS, ids=[target.name for target in TARGETS])
def pipeline(request):
    return default_pipeline(CompileConfig(), request.param)


def test_order(pipeline):
    assert [item.name for item in pipeline] == ORDER
    check_order(pipeline)


def test_every_pass_says_what_it_does(pipeline):
    assert all(item.summary for item in pipeline)


def test_a_missing_need_is_named():
    with pytest.raises(PassError, match=r"needs needs \['stats'\], which no earlier pass gives"):
        check_order((Needs(), Gives()))
    check_order((Gives(), Needs()))


@pytest.mark.parametrize("left_out", ["calibrate", "search-scales", "sense", "place"])
def test_no_pass_that_gives_may_be_left_out(pipeline, left_out):
    with pytest.raises(PassError, match="which no earlier pass gives"):
        check_order([item for item in pipeline if item.name != left_out])


def test_a_wrong_order_stops_before_anything_runs(build, state):
    held = state(build(MODEL))
    with pytest.raises(PassError, match="no earlier pass"):
        run((Needs(),), held, Watcher())
    assert not held.has(STATS)


def test_a_pass_that_gives_less_than_it_says(build, state):
    with pytest.raises(PassError, match=r"gives did not give \['stats'\]"):
        run((Gives(forgets=True),), state(build(MODEL)), Watcher())


def test_a_fact_given_twice(build, state):
    with pytest.raises(PassError, match="fact 'stats' was given twice"):
        run((Gives(), Gives()), state(build(MODEL)), Watcher())


def test_a_fact_that_was_not_given(build, state):
    with pytest.raises(PassError, match="fact 'grids' was not given"):
        state(build(MODEL)).get(GRIDS)


def test_steps_and_the_watcher(build, state):
    listener = Listener()
    steps = run((Gives(), Needs()), state(build(MODEL)), listener)
    assert [(s.name, s.outcome.note, s.outcome.changed) for s in steps] == [
        ("gives", "gave", 0), ("needs", "used", 3),
    ]  # fmt: skip
    assert all(step.seconds >= 0 and step.peak_mb > 0 for step in steps)
    assert listener.heard == [
        ("planned", 2), ("started", "gives"), ("finished", "gives"), ("started", "needs"),
        ("progressed", (1, 2)), ("finished", "needs"),
    ]  # fmt: skip


def test_a_pass_that_is_off_says_so_and_changes_nothing(build):
    config = CompileConfig(effort=Effort.FAST)
    held = State(build(MODEL), config, Feeds.of([{"x": np.ones((1, 2), np.float32)}] * 2))
    for item in default_pipeline(config, find_target("arm64", frozenset()))[:-2]:
        before = held.model().SerializeToString(deterministic=True)
        outcome = item.run(held)
        if item.name in OFF:
            assert outcome.note.startswith("off (")
            assert outcome.changed == 0
            assert held.model().SerializeToString(deterministic=True) == before


class Printed:
    """Names under which a printed pipeline can be evaluated."""

    names: ClassVar = {
        cls.__name__: cls for cls in (Folding, Scope, Search, Guard, Verification,
                                      *map(type, default_pipeline(CompileConfig(), TARGETS[0])))
    }  # fmt: skip


def test_passes_print_as_the_calls_that_rebuild_them():
    config = CompileConfig(
        exclude=("head*",), search=Search(candidates=7), guard=Guard(samples=0),
        verification=Verification(rounds=0),
    )  # fmt: skip
    for item in default_pipeline(config, TARGETS[0]):
        text = str(item).replace(repr(TARGETS[0]), "TARGET")
        assert text.startswith(f"{type(item).__name__}(")
        assert eval(text, {**Printed.names, "TARGET": TARGETS[0]}) == item


def test_settings_reach_the_passes():
    config = CompileConfig(exclude=("head*",), guard=Guard(samples=0))
    found = [p for p in default_pipeline(config, TARGETS[0]) if p.name in {"sense", "place"}]
    assert [(p.guard.samples, p.target) for p in found] == [(0, TARGETS[0])] * 2


def test_peak_memory_is_in_megabytes():
    assert 10 < peak_megabytes() < 100_000
