# SPDX-License-Identifier: Apache-2.0
"""Bridges as units: scales move downhill on some samples, and stay unless others agree."""

import numpy as np
import pytest

from qhyvit_onnx.config import CompileConfig, Effort, Extent, Guard
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.facts import BRIDGES, EVIDENCE, SEARCHED, Grids
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.kernels.evidence import Evidence
from qhyvit_onnx.passes._searching.bridges import search_bridges
from qhyvit_onnx.passes._searching.descent import FACTOR, STEPS, descend
from qhyvit_onnx.pipeline import default_pipeline
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import find_target
from qhyvit_onnx.units import find_units, is_softmax
from tests.blocks import mobilevit_v1

START = {name: Grid(1.0, 128) for name in "abc"}


def valley(**best):
    """Return a cost that is least where each scale has its best value."""

    def cost(grids):
        return 1.0 + sum(np.log(grids[name].scale / value) ** 2 for name, value in best.items())

    return cost


def test_every_scale_goes_to_its_best():
    lead = valley(a=FACTOR**2, b=FACTOR**-3, c=1.0)
    found = descend("abc", START, lead, lead)
    assert set(found) == {"a", "b"}
    assert found["a"].scale == pytest.approx(FACTOR**2)
    assert found["b"].scale == pytest.approx(FACTOR**-3)
    assert {grid.zero_point for grid in found.values()} == {128}


def test_a_scale_that_waits_for_another_has_another_round():
    def cost(grids):
        first, second = (grids[name].scale > 1.0 for name in "ab")
        return 10.0 - first - (first and second)

    assert set(descend("ba", START, cost, cost)) == {"a", "b"}


def test_no_scale_goes_further_than_its_steps():
    found = descend("a", START, valley(a=100.0), valley(a=100.0))
    assert found["a"].scale == pytest.approx(FACTOR**STEPS)


def test_what_the_judge_finds_no_better_is_not_taken():
    assert descend("ab", START, valley(a=2.0, b=2.0), valley(a=0.5, b=0.5)) == {}
    assert descend("ab", START, valley(a=2.0, b=2.0), lambda _: 1.0) == {}


@pytest.mark.parametrize("seed", range(20))
def test_the_judge_never_loses(seed):
    rng = np.random.default_rng(seed)
    lead, judge = (valley(**dict(zip("abc", np.exp(rng.normal(0, 0.2, 3)), strict=True)))
                   for _ in range(2))  # fmt: skip
    found = descend("abc", START, lead, judge)
    assert judge({**START, **found}) <= judge(START)
    if found:
        assert lead({**START, **found}) < lead(START)


def test_a_gain_that_may_be_chance_moves_nothing():
    def cost(grids):
        return 1.0 - 1e-4 * (grids["a"].scale > 1.0)

    assert descend("a", START, cost, cost) == {}


def test_what_is_not_named_stays():
    lead = valley(a=2.0, b=2.0)
    assert set(descend("b", START, lead, lead)) == {"b"}
    assert all(grid == Grid(1.0, 128) for grid in START.values())


ARM = find_target("arm64", frozenset()).with_free_int8()


def searched(count=6, effort=Effort.FAST, **settings):
    """Return the state of a hybrid after the search, by closed forms on histograms."""
    config = CompileConfig(effort=effort, guard=Guard(samples=0), **settings)
    rng = np.random.default_rng(2)
    feeds = [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]
    state = State(mobilevit_v1(), config, Feeds.of(feeds))
    for item in default_pipeline(config, ARM):
        item.run(state)
        if item.name == "search-scales":
            break
    return state


class Told:
    """A state whose evidence is ``evidence``."""

    def __init__(self, state, evidence):
        self._state, self._evidence = state, evidence

    def __getattr__(self, name):
        return getattr(self._state, name)

    def get(self, fact):
        return self._evidence if fact is EVIDENCE else self._state.get(fact)


def with_gains(state):
    """Return ``state`` where an error costs 1 at every output of a bridge."""
    outputs = {name for bridge in state.get(BRIDGES) for name in bridge.outputs}
    return Told(state, Evidence(gains=dict.fromkeys(sorted(outputs), 1.0)))


def widened(grids, factor=1.3):
    """Return ``grids`` with all activation scales off by ``factor``."""
    scaled = {
        name: Grid(factor * grid.scale, grid.zero_point, grid.bits)
        for name, grid in grids.activations.items()
    }
    return Grids(scaled, grids.weights, grids.codes)


@pytest.fixture(scope="module")
def hybrid():
    pytest.importorskip("torch", reason="bridges run in torch, an extra")
    return searched(precision="w8a4")


def test_a_bridge_without_gradients_is_left_as_it_is(hybrid):
    assert hybrid.get(BRIDGES)
    grids = hybrid.get(SEARCHED)
    found, improved = search_bridges(hybrid, find_units(hybrid.graph), grids, ARM, ())
    assert (found, improved) == (dict(grids.activations), 0)


def test_scales_that_are_wrong_are_mended(hybrid):
    state, wrong = with_gains(hybrid), widened(hybrid.get(SEARCHED), 1.5)
    found, improved = search_bridges(state, find_units(hybrid.graph), wrong, ARM, ())
    moved = {n: g.scale / wrong.activations[n].scale for n, g in found.items()}
    moved = {name: factor for name, factor in moved.items() if factor != 1.0}
    assert improved >= 1
    # steps of a tenth, three at most; most go back towards where they were
    powers = np.log(list(moved.values())) / np.log(FACTOR)
    np.testing.assert_allclose(powers, np.rint(powers), atol=1e-6)
    assert np.abs(powers).max() < STEPS + 0.5
    assert (powers < 0).mean() >= 0.5
    assert all(found[n].zero_point == wrong.activations[n].zero_point for n in found)


def test_two_searches_find_the_same(hybrid):
    state, wrong = with_gains(hybrid), widened(hybrid.get(SEARCHED))
    units = find_units(hybrid.graph)
    first, second = (search_bridges(state, units, wrong, ARM, ()) for _ in range(2))
    assert first == second


def test_what_is_fixed_stays(hybrid):
    state, wrong = with_gains(hybrid), widened(hybrid.get(SEARCHED), 1.5)
    units = find_units(hybrid.graph)
    free, _ = search_bridges(state, units, wrong, ARM, ())
    moved = [name for name, grid in free.items() if grid != wrong.activations[name]]
    found, _ = search_bridges(state, units, wrong, ARM, moved)
    assert all(found[name] == wrong.activations[name] for name in moved)


def test_what_others_read_too_stays():
    """The map beside the bridge is read by its last layer, and by the layer that leads to it."""
    pytest.importorskip("torch", reason="bridges run in torch, an extra")
    hybrid = searched(precision="w8a4", placement=Extent.FULL)
    tensors, bridges = hybrid.graph.tensors(), hybrid.get(BRIDGES)
    beside = {str(name) for name in tensors if name.startswith("mul") and _shared(hybrid, name)}
    assert beside
    state, wrong = with_gains(hybrid), widened(hybrid.get(SEARCHED), 1.5)
    found, improved = search_bridges(state, find_units(hybrid.graph), wrong, ARM, ())
    assert improved == len(bridges)
    assert all(found[name] == wrong.activations[name] for name in beside)


def _shared(state, name):
    """Tell whether a bridge reads a tensor that somebody outside of it reads too."""
    readers = {node.name for node in state.graph.tensors()[name].outputs}
    return any(readers & set(b.nodes) and readers - set(b.nodes) for b in state.get(BRIDGES))


@pytest.mark.parametrize("extent", Extent)
def test_an_integer_softmax_keeps_its_grid(extent):
    pytest.importorskip("torch", reason="gradients are torch's, an extra")
    state = searched(effort=Effort.DEFAULT, placement=extent, precision="w8a4")
    softmax = [name for name, tensor in state.graph.tensors().items() if is_softmax(tensor)]
    grids = {state.get(SEARCHED).activations[name] for name in softmax}
    assert softmax
    assert (grids == {Grid(1 / 16, 0, 4)}) is (extent is Extent.FULL)
