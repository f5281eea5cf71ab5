# SPDX-License-Identifier: Apache-2.0
"""Which classes of channels are scaled, shifted, both or left: the least error in closed form.

A class holds every tensor whose channels must be rewritten together: a residual stream, the parts
of a Concat, queries and keys. Its error is summed over all that read it, each relative to its own
signal, and includes the weights that the fold makes harder to round.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from qhyvit_onnx.kernels.equalize import (
    Moments,
    Weight,
    activation_noise,
    bounded,
    centred,
    equalizing,
    growth,
    level,
    signal,
    step,
    weight_noise,
)
from qhyvit_onnx.passes._folding.flow import Flags, Floats, Flow, Freedom
from qhyvit_onnx.passes._readers import FOREIGN, Ids

STRENGTHS = ((1.0, 0.0), (0.75, 0.0), (0.5, 0.0), (0.25, 0.0), (0.75, 0.25), (0.5, 0.5))
"""(a, b): scale = rms^a / weight^b; (1, 0) makes all channels equally large, (0.5, 0.5) splits the
burden between activations and weights."""

WORTH = 0.9
"""A fold must lower the error of its class at least to this: less is within the model's error."""


WORTH_NODES = 0.5
"""The same for a class whose scale takes a Mul and an Add of its own: these run in float."""


class Cure(StrEnum):
    """What was done to a class."""

    OFF = "off"
    SCALE = "scale"
    SHIFT = "shift"
    BOTH = "both"


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A tensor that gets one grid. Shapes: ids (C,)."""

    name: str
    ids: Ids


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A layer and the grid it reads."""

    grid: Grid
    weight: Weight


@dataclass(frozen=True, slots=True, eq=False)
class Pairing:
    """A product of two activations, each on its grid. Shapes: left_ids, right_ids (K,)."""

    left: Grid
    right: Grid
    left_ids: Ids
    right_ids: Ids


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """All there is to choose from, in one graph.

    Arrays over channels have one more entry than there are channels: FOREIGN, for what is none.
    """

    flow: Flow
    freedom: Freedom
    seen: Moments
    grids: Sequence[Grid]
    readings: Sequence[Reading]
    pairings: Sequence[Pairing]
    max_growth: float


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What is done to one class. Shapes: scale, shift, members (size + 1,)."""

    cure: Cure
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
    return [_chosen(_Class(problem, grids), offered) for grids in _classes(problem)]


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


def _classes(problem: Problem) -> Iterator[list[Grid]]:
    """Yield the grids of every class."""
    groups, free = problem.freedom.groups, _live(problem)
    pairs = [
        (at, group)
        for at, grid in enumerate(problem.grids)
        for group in np.unique(groups[grid.ids[free[grid.ids]]])
    ]
    if not pairs:
        return
    rows, columns = np.array(pairs).T
    count = len(problem.grids)
    shape = (count + groups.max() + 1,) * 2
    graph = coo_array((np.ones(rows.size), (rows, columns + count)), shape)
    _, labels = connected_components(graph, directed=False)
    held = sorted(set(rows.tolist()))
    for label in dict.fromkeys(labels[held].tolist()):
        yield [problem.grids[at] for at in held if labels[at] == label]


def _live(problem: Problem) -> np.ndarray:
    """Return which channels are in a group that something may still be chosen for."""
    freedom = problem.freedom
    free = ~freedom.fixed
    for source in problem.flow.sources:
        free[source.ids] |= ~freedom.pinned[source.ids]
    alive = np.zeros(freedom.groups.max(initial=-1) + 1, bool)
    alive[freedom.groups[free]] = True
    return alive[freedom.groups]


class _Class:
    """One class, and the error that a scale and shift make in it."""

    def __init__(self, problem: Problem, grids: list[Grid]) -> None:
        self.problem, self.grids = problem, grids
        names = {grid.name for grid in grids}
        self.readings = [item for item in problem.readings if item.grid.name in names]
        self.pairings = [
            item for item in problem.pairings if {item.left.name, item.right.name} <= names
        ]
        self.unread = {grid.name: self._unread(grid) for grid in grids}
        self.signals = [max(signal(item.weight, problem.seen), 1e-30) for item in self.readings]
        self.need = self._need()

    def members(self) -> Flags:
        """Return which channels belong to the class."""
        groups = self.problem.freedom.groups
        ids = np.concatenate([grid.ids for grid in self.grids])
        mine = np.zeros(groups.max() + 1, bool)
        mine[groups[ids[_live(self.problem)[ids]]]] = True
        return np.append(mine[groups], False)

    def takes_nodes(self) -> bool:
        """Tell whether a source of the class would have to get nodes behind it."""
        members = self.members()
        sources = self.problem.flow.sources
        return any(item.takes_nodes and members[item.ids].any() for item in sources)

    def _need(self) -> Floats:
        """Return how much an error of each group counts, on average over the layers reading it."""
        groups = self.problem.freedom.groups
        total, count = (np.zeros(groups.max(initial=-1) + 1) for _ in range(2))
        for item, power in zip(self.readings, self.signals, strict=True):
            ids = np.broadcast_to(item.weight.ids, item.weight.energy.shape)
            known = ids != FOREIGN
            at = groups[ids[known]]
            np.add.at(total, at, item.weight.energy[known] / power)
            count[np.unique(at)] += 1
        return np.asarray(total / np.maximum(count, 1))

    def _unread(self, grid: Grid) -> Ids:
        """Return the channels of a grid that nothing reads there: values, parts of a sum."""
        read = [item.weight.ids for item in self.readings if item.grid is grid]
        read += [item.left_ids for item in self.pairings if item.left is grid]
        read += [item.right_ids for item in self.pairings if item.right is grid]
        groups = self.problem.freedom.groups
        known = [groups[ids[ids != FOREIGN]] for ids in read]
        return grid.ids[~np.isin(groups[grid.ids], np.concatenate([*known, grid.ids[:0]]))]

    def error(self, scale: Floats, shift: Floats) -> float:
        """Return the sum of the errors of all readers, each relative to its signal."""
        seen = self.problem.seen
        steps = {grid.name: step(seen, grid.ids, scale, shift) for grid in self.grids}
        total = 0.0
        for item, power in zip(self.readings, self.signals, strict=True):
            noise = activation_noise(item.weight, scale, steps[item.grid.name])
            total += (noise + weight_noise(item.weight, seen, scale, shift)) / power
        for pair in self.pairings:
            total += self._paired(pair, steps, scale, shift)
        for name, ids in self.unread.items():
            need = self.need[self.problem.freedom.groups[ids]]
            total += steps[name] ** 2 / 12 * float((need * scale[ids] ** 2).sum())
        return total

    def _paired(
        self, pair: Pairing, steps: Mapping[str, float], scale: Floats, shift: Floats
    ) -> float:
        seen = self.problem.seen
        square = seen.variance + np.square(seen.mean - shift)
        left, right = square[pair.left_ids], square[pair.right_ids]
        power = max(float((left * right).sum()), 1e-30)
        noise = steps[pair.left.name] ** 2 * (scale[pair.left_ids] ** 2 * right).sum()
        noise += steps[pair.right.name] ** 2 * (scale[pair.right_ids] ** 2 * left).sum()
        return float(noise) / 12 / power

    def allows(self, scale: Floats) -> bool:
        """Tell whether no row of a weight grows by more than the bound."""
        limit, seen = self.problem.max_growth, self.problem.seen
        return all(growth(item.weight, seen, scale) <= limit for item in self.readings)

    def scales(self, shift: Floats) -> Iterator[Floats]:
        """Yield the scales worth trying after ``shift``; over all channels of the graph.

        They are made from root mean squares. Ranges would fit the samples: with every channel
        stretched to the largest value seen of it, the next image clips in all of them.
        """
        freedom, seen = self.problem.freedom, self.problem.seen
        ids = np.concatenate([grid.ids for grid in self.grids])
        free = ~freedom.fixed[ids]
        if not free.any():
            return
        power = seen.variance[ids] + np.square(seen.mean[ids] - shift[ids])
        logs = np.log(np.maximum(power, max(power.max() * 1e-12, 1e-60))) / 2
        logs -= level(logs, freedom.groups[ids], freedom.signs[ids], free)
        ids, logs = ids[free], logs[free]
        held, groups = np.unique(freedom.groups[ids], return_inverse=True)
        sizes = equalizing(logs, groups, freedom.signs[ids], held.size)
        weights = centred(self.need[held]) / 2
        place = np.full(freedom.groups.max() + 1, FOREIGN)
        place[held] = np.arange(held.size)
        mine = ~freedom.fixed & (place[freedom.groups] != FOREIGN)
        for size_power, weight_power in STRENGTHS:
            chosen = size_power * sizes - weight_power * weights
            log = np.log(bounded(chosen))[place[freedom.groups[mine]]]
            scale = np.ones(freedom.groups.size + 1)
            scale[:-1][mine] = np.exp(freedom.signs[mine] * log)
            yield scale


def _chosen(held: _Class, offered: Sequence[Floats]) -> Choice:
    """Return the best of off, shift, scale, and both."""
    one = np.ones(held.problem.flow.size + 1)
    tensors = tuple(grid.name for grid in held.grids)
    before, members = held.error(one, offered[0]), held.members()
    best = Choice(Cure.OFF, tensors, before, before, one, offered[0], members)
    if not held.readings and not held.pairings:
        return best
    limit = (WORTH_NODES if held.takes_nodes() else WORTH) * before
    for number, shift in enumerate(offered):
        for scale in (one, *held.scales(shift)):
            after = held.error(scale, shift)
            if after >= limit or (scale is not one and not held.allows(scale)):
                continue
            limit, cure = after, _cure(scaled=scale is not one, shifted=number > 0)
            best = Choice(cure, tensors, before, after, scale, shift, members)
    return best


def _cure(*, scaled: bool, shifted: bool) -> Cure:
    if scaled:
        return Cure.BOTH if shifted else Cure.SCALE
    return Cure.SHIFT if shifted else Cure.OFF
