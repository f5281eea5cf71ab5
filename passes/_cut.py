# SPDX-License-Identifier: Apache-2.0
"""Cheapest choice of one of two labels for every item, exactly, as a minimum s-t cut."""

from collections import defaultdict
from collections.abc import Hashable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

_LARGEST = 2**30
"""Capacities are whole numbers of 32 bits; the sum of all that are finite is scaled to this."""

_SOURCE, _SINK = 0, 1


class Choice:
    """Items that are each taken or left, with costs of single items and of pairs.

    Source:
        Greig, Porteous, Seheult, 1989 (Journal of the Royal Statistical Society B 51): taken is the
        source's side of the cut, and a cost of taking one item without the other an edge from one
        to the other.
    """

    def __init__(self) -> None:
        """Start without items."""
        self._numbers: dict[Hashable, int] = {}
        self._edges: dict[tuple[int, int], float] = defaultdict(float)
        self._fixed: set[tuple[int, int]] = set()

    def taking(self, item: Hashable, cost: float) -> None:
        """Let taking ``item`` cost ``cost``, 0 or more."""
        self._add((self._number(item), _SINK), cost)

    def leaving(self, item: Hashable, cost: float) -> None:
        """Let leaving ``item`` cost ``cost``, 0 or more."""
        self._add((_SOURCE, self._number(item)), cost)

    def without(self, item: Hashable, other: Hashable, cost: float) -> None:
        """Let taking ``item`` and leaving ``other`` cost ``cost``, 0 or more."""
        self._add((self._number(item), self._number(other)), cost)

    def needs(self, item: Hashable, other: Hashable) -> None:
        """Forbid taking ``item`` and leaving ``other``."""
        self._fixed.add((self._number(item), self._number(other)))

    def force(self, item: Hashable, *, taken: bool) -> None:
        """Take ``item``, or leave it, whatever that costs."""
        number = self._number(item)
        self._fixed.add((_SOURCE, number) if taken else (number, _SINK))

    def solve(self) -> set[Hashable]:
        """Return the items taken in a cheapest choice; of several, the one that takes least."""
        total = sum(self._edges.values())
        if not self._numbers:
            return set()
        scale = _LARGEST / total if total > 0 else 0.0
        capacities = {edge: round(cost * scale) for edge, cost in self._edges.items()}
        never = sum(capacities.values()) + 1  # dearer than everything else together
        capacities |= dict.fromkeys(self._fixed, never)
        return self._taken(capacities)

    def _taken(self, capacities: dict[tuple[int, int], int]) -> set[Hashable]:
        count = len(self._numbers) + 2
        edges = list(capacities)
        ends = np.array(edges, np.int32).reshape(-1, 2).T
        shape = (count, count)
        graph = coo_array((np.fromiter(capacities.values(), np.int32), ends), shape).tocsr()
        left = graph - maximum_flow(graph, _SOURCE, _SINK).flow
        left.eliminate_zeros()
        reached = set(breadth_first_order(left, _SOURCE, return_predecessors=False).tolist())
        return {item for item, number in self._numbers.items() if number in reached}

    def _number(self, item: Hashable) -> int:
        return self._numbers.setdefault(item, len(self._numbers) + 2)

    def _add(self, edge: tuple[int, int], cost: float) -> None:
        if cost:
            self._edges[edge] += cost
