# SPDX-License-Identifier: Apache-2.0
"""FoldRanges: per-channel scale and shift moved across the graph, where that lowers the error.

Integer kernels take one scale per tensor. What channels need beyond it is divided out where they
are computed and given back where they are read; the float model stays the same.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qhyvit_onnx.config import Folding, Scope
from qhyvit_onnx.facts import FLOAT, FOLDS, LAYOUT, RANGES, STATS, Fold
from qhyvit_onnx.graph import tidy
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes._folding.choice import Choice, Remedy, choose
from qhyvit_onnx.passes._folding.flow import Flow
from qhyvit_onnx.passes._folding.problem import pose
from qhyvit_onnx.passes._folding.tracer import trace
from qhyvit_onnx.passes._folding.write import Change, Writer
from qhyvit_onnx.passes._observe import observe, watched
from qhyvit_onnx.state import State
from qhyvit_onnx.units import find_units


@dataclass(frozen=True)
class FoldRanges(Pass):
    """Choose per class of channels between nothing, scale, shift and both, and write it down."""

    folding: Folding = Folding()  # noqa: RUF009  frozen

    name = "fold-ranges"
    summary = "per-channel scale and shift moved into the layers before and after, exactly"
    needs = (STATS, LAYOUT)
    gives = (RANGES, FOLDS, FLOAT)

    def run(self, state: State) -> Outcome:
        """Put RANGES, the statistics after the folds; FOLDS; and FLOAT, the folded model."""
        stats, choices = state.get(STATS), list[Choice]()
        ranges = dict(stats)
        if self.folding.scope is Scope.ALL:
            flow = trace(state.graph, state.get(LAYOUT).moves)
            choices = choose(pose(state.graph, flow, stats, self.folding.max_growth))
            change = _joined(flow, choices)
            Writer(state.graph, flow, change).write()
            tidy(state.graph)
            ranges |= _observed(state, flow, change, stats)
        state.put(RANGES, ranges)
        state.put(FOLDS, tuple(_fold(choice, stats, ranges) for choice in choices))
        state.put(FLOAT, state.model())
        done = Counter(str(choice.remedy) for choice in choices)
        changed = done.total() - done[Remedy.OFF]
        return Outcome(changed, _note(done) if self.folding.scope is Scope.ALL else "off")


def _joined(flow: Flow, choices: Sequence[Choice]) -> Change:
    """Return all choices as one change."""
    scale, shift = np.ones(flow.size + 1), np.zeros(flow.size + 1)
    for choice in choices:
        scale[choice.members] = choice.scale[choice.members]
        shift[choice.members] = choice.shift[choice.members]
    return Change(scale, shift)


def _observed(
    state: State, flow: Flow, change: Change, before: Mapping[str, TensorStats]
) -> dict[str, TensorStats]:
    """Return statistics of every watched tensor that the change touched or made, seen anew."""
    units = find_units(state.graph)
    touched = {name for name, ids in flow.ids.items() if change.touches(ids)}
    products = (item for item in flow.products if change.touches(item.right))
    scores = {name for product in products for name in product.scores}
    axes = watched(units, state.config)
    old = before.keys() - touched - scores
    moved = {name: axis for name, axis in axes.items() if name not in old}
    return observe(state, moved, units)[0] if moved else {}


def _fold(
    choice: Choice, before: Mapping[str, TensorStats], after: Mapping[str, TensorStats]
) -> Fold:
    """Return what the report says of a class."""
    cured = [n for n in choice.tensors if before[n].one_sided and not after[n].one_sided]
    return Fold(choice.tensors, str(choice.remedy), choice.before, choice.after, tuple(cured))


def _note(done: Counter[str]) -> str:
    kinds = ", ".join(f"{done[cure]} {cure}" for cure in Remedy if done[cure])
    return f"{done.total()} classes of channels" + (f": {kinds}" if kinds else "")
