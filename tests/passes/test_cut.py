# SPDX-License-Identifier: Apache-2.0
"""The minimum cut against trying every choice."""

from itertools import product

import numpy as np
import pytest

from qhyvit_onnx.passes._cut import Choice


class Problem:
    """A random problem, and what each choice costs."""

    def __init__(self, seed, items):
        rng = np.random.default_rng(seed)
        self.items = list(range(items))
        self.single = rng.normal(size=items)
        pairs = rng.uniform(size=(items, items)) * (rng.uniform(size=(items, items)) < 0.4)
        self.pairs = pairs * (1 - np.eye(items))
        self.forced = {int(rng.integers(items)): bool(rng.integers(2))} if seed % 2 else {}
        a, b = rng.permutation(items)[:2]
        self.needed = [(int(a), int(b))] if seed % 3 == 0 else []

    def cost(self, taken):
        if any(taken[item] != want for item, want in self.forced.items()):
            return np.inf
        if any(taken[a] and not taken[b] for a, b in self.needed):
            return np.inf
        labels = np.array(taken, float)
        return float(self.single @ labels + labels @ self.pairs @ (1 - labels))

    def choice(self):
        choice = Choice()
        for item in self.items:
            choice.taking(item, max(float(self.single[item]), 0.0))
            choice.leaving(item, max(-float(self.single[item]), 0.0))
            for other in self.items:
                choice.without(item, other, float(self.pairs[item, other]))
        for item, want in self.forced.items():
            choice.force(item, taken=want)
        for a, b in self.needed:
            choice.needs(a, b)
        return choice


@pytest.mark.parametrize("seed", range(60))
def test_the_cut_is_as_cheap_as_the_best_of_all_choices(seed):
    problem = Problem(seed, 3 + seed % 8)
    best = min(problem.cost(taken) for taken in product((0, 1), repeat=len(problem.items)))
    found = problem.choice().solve()
    assert np.isfinite(best)
    assert problem.cost([item in found for item in problem.items]) == pytest.approx(best, abs=1e-6)


def test_of_equal_choices_the_one_that_takes_least():
    choice = Choice()
    choice.taking("free", 0.0)
    choice.taking("costly", 1.0)
    choice.leaving("cheap", 1.0)
    assert choice.solve() == {"cheap"}


def test_nothing_to_choose():
    assert Choice().solve() == set()


def test_what_must_not_be_parted_goes_together():
    choice = Choice()
    choice.leaving("a", 3.0)
    choice.taking("b", 2.0)
    choice.needs("a", "b")
    assert choice.solve() == {"a", "b"}
    choice.taking("b", 2.0)
    assert choice.solve() == set()


def test_a_forced_item_pulls_its_neighbour():
    choice = Choice()
    choice.force("a", taken=True)
    choice.taking("b", 1.0)
    choice.without("a", "b", 3.0)
    assert choice.solve() == {"a", "b"}
    choice.force("b", taken=False)
    assert choice.solve() == {"a"}
