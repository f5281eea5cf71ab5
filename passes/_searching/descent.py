# SPDX-License-Identifier: Apache-2.0
"""Scales of several tensors that are measured together, one after the other, downhill."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from qhyvit_onnx.grid import Grid

Cost: TypeAlias = Callable[[Mapping[str, Grid]], float]
"""What all errors together cost, with every tensor on its grid."""

FACTOR, STEPS = 1.1, 3
"""A scale is moved by this factor at a time, and this many times at most from where it started:
a search on other statistics put it there, on far more data."""

ROUNDS = 3

GAIN = 1e-3
"""What a move must save, as a fraction of the cost: less is chance."""


def descend(
    names: Sequence[str], start: Mapping[str, Grid], lead: Cost, judge: Cost
) -> dict[str, Grid]:
    """Return better grids for ``names``; none if ``judge``, on other data, finds them no better.

    Only scales move; zero points stay. Every round goes through all names, as long as the one
    before moved anything.
    """
    now = dict(start)
    moves = dict.fromkeys(names, 0)
    cost = lead(now)
    for _ in range(ROUNDS):
        before = cost
        for name in names:
            cost = _move(name, now, moves, lead, cost)
        if cost == before:
            break
    better = any(moves.values()) and judge(now) < judge(start)
    return {name: now[name] for name in names if moves[name]} if better else {}


def _move(name: str, now: dict[str, Grid], moves: dict[str, int], lead: Cost, cost: float) -> float:
    """Move one scale up, or else down, as long as that helps; return the cost then."""
    for step in (1, -1):
        before = moves[name]
        while abs(moves[name] + step) <= STEPS:
            grid = now[name]
            moved = replace(grid, scale=grid.scale * FACTOR**step)
            found = lead({**now, name: moved})
            if found >= cost * (1.0 - GAIN):
                break
            cost, now[name] = found, moved
            moves[name] += step
        if moves[name] != before:
            break
    return cost
