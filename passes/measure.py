# SPDX-License-Identifier: Apache-2.0
"""What the emitted model loses on data of the user's: what ``--max-drop`` is about."""

from collections.abc import Mapping
from dataclasses import dataclass

from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.data.labels import by_run
from qhyvit_onnx.errors import DataError
from qhyvit_onnx.evaluate import compare
from qhyvit_onnx.facts import DROP, INTERFACE, Drop
from qhyvit_onnx.interface import Coded
from qhyvit_onnx.metrics import Closeness
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.runtime import Options, Session, cpu_features
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import arithmetic_of


@dataclass(frozen=True)
class Measure(Pass):
    """Run float and emitted model on ``samples``; with labels compare top-1, else decisions."""

    target: Target
    samples: Feeds

    name = "measure"
    summary = "what the emitted model loses on the evaluation data"
    needs = (INTERFACE,)
    gives = (DROP,)

    def run(self, state: State) -> Outcome:
        """Put DROP.

        Error:
            DataError when the labels fit no output.
        """
        options = Options(arithmetic=arithmetic_of(self.target, cpu_features()))
        labels, total = by_run(self.samples), len(self.samples)
        found = compare(
            Session(state.source),
            Coded(Session(state.model(), options), state.get(INTERFACE)),
            self.samples,
            labels=labels,
            tick=lambda done: state.tick(done, total),
        )
        drop = drop_of(found, labelled=bool(labels))
        state.put(DROP, drop)
        return Outcome(0, str(drop))


def drop_of(found: Mapping[str, Closeness], *, labelled: bool) -> Drop:
    """Return what the worst output loses."""
    scored = [
        100 * (item.top1_float - item.top1_int8)
        for item in found.values()
        if item.top1_float is not None and item.top1_int8 is not None
    ]
    if labelled and not scored:
        raise DataError("the labels of --eval fit no output: none decides among so many classes")
    if labelled:
        return Drop(max(scored), labelled=True)
    return Drop(max(100 * (1 - item.agreement) for item in found.values()), labelled=False)
