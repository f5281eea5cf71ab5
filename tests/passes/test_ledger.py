# SPDX-License-Identifier: Apache-2.0
"""The ledger: what a placement costs, and that the cut finds the cheapest of all."""

from itertools import chain, combinations

import numpy as np
import pytest

from qhyvit_onnx.config import Guard
from qhyvit_onnx.costs.table import KEYS, Cost, Size, Target, float_key, int8_key
from qhyvit_onnx.kinds import Kind
from qhyvit_onnx.passes._ledger import Ledger
from qhyvit_onnx.passes._quiet import quietest_enough
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import TARGETS
from qhyvit_onnx.units import find_units
from qhyvit_onnx.work import shapes_at
from tests.conftest import build_model
from tests.random_hybrids import random_hybrid

every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
LARGEST = 11
"""Units of which every choice is tried."""


def random_target(seed):
    """Return a target of random costs: none of what is true on a CPU is taken for granted."""
    rng = np.random.default_rng(seed)

    def cost():
        fixed, mac, element = rng.exponential(size=3) * (rng.uniform(size=3) < 0.7)
        return Cost(1e3 * float(fixed), 1e-2 * float(mac), float(element))

    return Target("random", "", "ns", "", {key: cost() for key in KEYS})


def ledger_of(model, target):
    """Return the ledger of ``model``, of as many of its units as can all be tried."""
    graph = State(model, None, []).graph
    units = list(find_units(graph))
    return Ledger(graph, units, target, shapes_at(graph, {})), [unit.name for unit in units]


def hybrid(seed):
    text, weights = random_hybrid(seed)[:2]
    return build_model(text, **weights)


def subsets(names):
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))


@pytest.mark.parametrize("seed", range(16))
def test_the_cut_finds_what_trying_everything_finds(seed):
    ledger, names = ledger_of(hybrid(seed), random_target(seed))
    allowed = names[:LARGEST]
    rng = np.random.default_rng(seed)
    noise = {name: float(rng.exponential()) for name in allowed}
    for weight in (0.0, 300.0):

        def price(chosen, weight=weight):
            return ledger.cost(set(chosen)) + weight * sum(noise[name] for name in chosen)

        best = min(map(price, subsets(allowed)))
        found = ledger.cheapest(allowed, noise, weight)
        assert found <= set(allowed)
        assert price(found) == pytest.approx(best, rel=1e-6)


@every_target
def test_the_cut_is_never_dearer_than_all_or_nothing(target):
    for seed in range(8):
        ledger, names = ledger_of(hybrid(seed), target)
        found = ledger.cost(ledger.cheapest(names, {}))
        assert found <= min(ledger.cost(set()), ledger.cost(set(names))) * (1 + 1e-6)


def flat(**rows):
    """Return a target where all is free but what is named: a cost for each unit."""
    named = {key.replace("__", ".").replace("_", " "): Cost(fixed=x) for key, x in rows.items()}
    return Target("flat", "", "ns", "", {key: named.get(key, Cost()) for key in KEYS})


CONV = "Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]>"
W = {"w": (8, 8, 3, 3)}


def priced(build, body, target, weights=W):
    text = f"g (float[1, 8, 4, 4] x) => (float[a, b, c, d] y) {{ {body} }}"
    return ledger_of(build(text, **weights), target)[0]


def test_one_q_for_all_who_read_codes(build):
    body = f"[one] a = {CONV} (x, w) [two] b = {CONV} (x, w) y = Concat <axis = 1> (a, b)"
    ledger = priced(build, body, flat(border__quantize=1.0))
    assert ledger.cost(set()) == 0
    assert ledger.cost({"one"}) == ledger.cost({"one", "two"}) == 1


def test_one_dq_for_all_who_read_floats(build):
    body = f"[one] a = {CONV} (x, w) b = Exp (a) c = Tanh (a) y = Add (b, c)"
    ledger = priced(build, body, flat(border__dequantize=1.0))
    assert ledger.cost({"one"}) == 1


def test_a_product_writes_floats_at_no_cost_unless_codes_are_wanted_too(build):
    target = flat(border__quantize=1.0, border__dequantize=10.0)
    weights = {"v": (4, 4), "w": (4, 4)}
    body = "[one] a = MatMul (x, w) b = Exp (a) [two] c = MatMul (a, v) y = Add (b, c)"
    ledger = priced(build, body, target, weights)
    assert ledger.cost({"one"}) == 1  # its input
    assert ledger.cost({"one", "two"}) == 2  # and a Q after it, since Exp reads floats
    alone = priced(build, "[one] a = MatMul (x, w) [two] y = MatMul (a, v)", target, weights)
    assert alone.cost({"one", "two"}) == 1


def test_movement_does_not_hide_neighbours(build):
    body = (
        f"[one] a = {CONV} (x, w) b = Transpose <perm = [0, 1, 3, 2]> (a) [two] y = {CONV} (b, w)"
    )
    ledger = priced(build, body, flat(border__quantize=1.0, border__dequantize=100.0))
    assert ledger.cost({"one", "two"}) == 1 + 100
    assert ledger.cost({"one"}) == 1 + 100


def test_layouts_change_at_the_borders_of_convolutions(build):
    target = flat(border__nhwc=1.0, border__blocked=10.0)
    ledger = priced(build, f"[one] a = {CONV} (x, w) [two] y = {CONV} (a, w)", target)
    assert ledger.cost(set()) == 20  # into and out of the pair
    assert ledger.cost({"one", "two"}) == 2
    assert ledger.cost({"one"}) == 1 + 11 + 10


def test_a_unit_costs_by_its_own_row(build):
    rows = {float_key(Kind.CONV): Cost(mac=1.0), int8_key(Kind.CONV): Cost(element=1.0)}
    target = Target("t", "", "ns", "", {key: rows.get(key, Cost()) for key in KEYS})
    ledger = priced(build, f"[one] y = {CONV} (x, w)", target)
    assert ledger.cost(set()) == 8 * 16 * 72
    assert ledger.cost({"one"}) == 2 * 8 * 16
    assert target.cost(float_key(Kind.CONV), Size(2.0)) == 2.0


class Counting:
    """A ledger of units that share nothing, to see what the guard asks of it."""

    def __init__(self, saved):
        self.saved = saved

    def cost(self, chosen):
        return 100.0 - sum(self.saved[name] for name in chosen)

    def cheapest(self, allowed, noise, weight=0.0):
        return {name for name in allowed if self.saved[name] > weight * noise[name]}


SAVED = {"a": 10.0, "b": 10.0, "c": 1.0, "d": 5.0}
NOISE = {"a": 0.1, "b": 0.001, "c": 0.05, "d": 0.02}


@pytest.mark.parametrize(
    ("most", "share", "left"),
    [
        (1.0, 1.0, set()),
        (0.13, 1.0, {"c"}),  # little saved for its noise
        (0.03, 1.0, {"a", "c"}),
        (0.03, 0.2, {"c"}),  # a would give away more than a fifth of what is saved
        (0.0001, 1.0, {"a", "b", "c", "d"}),
        (0.13, 0.0, set()),
    ],
)
def test_the_guard_gives_the_least_speed_for_the_most_noise(most, share, left):
    guard = Guard(max_noise=most, max_share=share)
    chosen = quietest_enough(Counting(SAVED), SAVED, NOISE, guard)
    assert set(SAVED) - chosen == left
