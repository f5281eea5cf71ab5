# SPDX-License-Identifier: Apache-2.0
"""Which classes of channels are scaled, shifted, both or left: the least error in closed form."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from qhyvit_onnx.kernels.equalize import bounded, centred, equalizing, level
from qhyvit_onnx.passes._folding.classes import FoldClass, Problem, classes_of
from qhyvit_onnx.passes._folding.flow import Flags, Floats
from qhyvit_onnx.passes._readers import FOREIGN

STRENGTHS = ((1.0, 0.0), (0.75, 0.0), (0.5, 0.0), (0.25, 0.0), (0.75, 0.25), (0.5, 0.5))
"""(a, b): scale = rms^a / weight^b; (1, 0) makes all channels equally large, (0.5, 0.5) splits the
burden between activations and weights."""

WORTH = 0.9
"""A fold must lower the error of its class at least to this: less is within the model's error."""

WORTH_NODES = 0.5
"""The same for a class whose scale takes a Mul and an Add of its own: these run in float."""


class Remedy(StrEnum):
    """What was done to a class."""

    OFF = "off"
    SCALE = "scale"
    SHIFT = "shift"
    BOTH = "both"


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What is done to one class. Shapes: scale, shift, members (size + 1,)."""

    remedy: Remedy
    tensors: tuple[str, ...]
    before: float
    after: float
    scale: Floats
    shift: Floats
    members: Flags
    """Which channels it is done to."""


def choose(problem: Problem) -> list[Choice]:
    """Return one choice for each class that has any freedom, in the order of the graph."""
    offered = tuple(_offered(problem))
    return [_chosen(held, offered) for held in classes_of(problem)]


def _offered(problem: Problem) -> Iterator[Floats]:
    """Yield the shifts that sources may take: none, and the mean.

    Means add up where tensors do, and are known well from few samples; the middle of the range that
    was seen is neither.
    """
    seen, free = problem.seen, np.zeros(problem.flow.size, bool)
    for source in problem.flow.sources:
        free[source.ids] = True
    free &= ~problem.freedom.pinned & np.isfinite(seen.low[:-1])
    yield np.zeros(problem.flow.size + 1)
    yield np.append(problem.flow.shifts(np.where(free, seen.mean[:-1], 0.0)), 0.0)


def _scales(held: FoldClass, shift: Floats) -> Iterator[Floats]:
    """Yield the scales worth trying after ``shift``; over all channels of the graph.

    They are made from root mean squares. Ranges would fit the samples: with every channel
    stretched to the largest value seen of it, the next image clips in all of them.
    """
    freedom, seen = held.problem.freedom, held.problem.seen
    ids = np.concatenate([grid.ids for grid in held.grids])
    free = ~freedom.fixed[ids]
    if not free.any():
        return
    power = seen.variance[ids] + np.square(seen.mean[ids] - shift[ids])
    logs = np.log(np.maximum(power, max(power.max() * 1e-12, 1e-60))) / 2
    logs -= level(logs, freedom.groups[ids], freedom.signs[ids], free)
    ids, logs = ids[free], logs[free]
    present, groups = np.unique(freedom.groups[ids], return_inverse=True)
    sizes = equalizing(logs, groups, freedom.signs[ids], present.size)
    weights = centred(held.need[present]) / 2
    place = np.full(freedom.groups.max() + 1, FOREIGN)
    place[present] = np.arange(present.size)
    mine = ~freedom.fixed & (place[freedom.groups] != FOREIGN)
    for size_power, weight_power in STRENGTHS:
        chosen = size_power * sizes - weight_power * weights
        log = np.log(bounded(chosen))[place[freedom.groups[mine]]]
        scale = np.ones(freedom.groups.size + 1)
        scale[:-1][mine] = np.exp(freedom.signs[mine] * log)
        yield scale


def _chosen(held: FoldClass, offered: Sequence[Floats]) -> Choice:
    """Return the best of off, shift, scale, and both."""
    one = np.ones(held.problem.flow.size + 1)
    tensors = tuple(grid.name for grid in held.grids)
    before, members = held.error(one, offered[0]), held.members()
    best = Choice(Remedy.OFF, tensors, before, before, one, offered[0], members)
    if not held.readings and not held.pairings:
        return best
    limit = (WORTH_NODES if held.takes_nodes() else WORTH) * before
    for number, shift in enumerate(offered):
        for scale in (one, *_scales(held, shift)):
            after = held.error(scale, shift)
            if after >= limit or (scale is not one and not held.allows(scale)):
                continue
            limit, remedy = after, _remedy(scaled=scale is not one, shifted=number > 0)
            best = Choice(remedy, tensors, before, after, scale, shift, members)
    return best


def _remedy(*, scaled: bool, shifted: bool) -> Remedy:
    if scaled:
        return Remedy.BOTH if shifted else Remedy.SCALE
    return Remedy.SHIFT if shifted else Remedy.OFF
