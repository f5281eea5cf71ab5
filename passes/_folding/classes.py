# SPDX-License-Identifier: Apache-2.0
"""Classes of channels that must be rewritten together, and the error that rounding makes in them.

A class holds a residual stream, the parts of a Concat, queries and keys. Its error is summed over
all that read it, each relative to its own signal, and includes the weights that a fold makes harder
to round.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from qhyvit_onnx.kernels.equalize import (
    Moments,
    Weight,
    activation_noise,
    growth,
    signal,
    step,
    weight_noise,
)
from qhyvit_onnx.passes._folding.flow import Flags, Floats, Flow, Freedom
from qhyvit_onnx.passes._readers import FOREIGN, Ids


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


def classes_of(problem: Problem) -> Iterator["FoldClass"]:
    """Yield every class that has any freedom, in the order of the graph."""
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
        yield FoldClass(problem, [problem.grids[at] for at in held if labels[at] == label])


def _live(problem: Problem) -> np.ndarray:
    """Return which channels are in a group that something may still be chosen for."""
    freedom = problem.freedom
    free = ~freedom.fixed
    for source in problem.flow.sources:
        free[source.ids] |= ~freedom.pinned[source.ids]
    alive = np.zeros(freedom.groups.max(initial=-1) + 1, bool)
    alive[freedom.groups[free]] = True
    return alive[freedom.groups]


class FoldClass:
    """One class, and the error that a scale and shift make in it."""

    def __init__(self, problem: Problem, grids: list[Grid]) -> None:
        """Gather what reads ``grids``."""
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
