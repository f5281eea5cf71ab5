# SPDX-License-Identifier: Apache-2.0
"""Simulations by recipe: the same numbers as what is emitted, and numbers where nothing can be."""

from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="a simulation runs in torch, an extra")

import qhyvit_onnx.simulator as module  # noqa: E402
from qhyvit_onnx.compiler import compile_model  # noqa: E402
from qhyvit_onnx.config import CompileConfig, Effort, Verification  # noqa: E402
from qhyvit_onnx.data import Feeds  # noqa: E402
from qhyvit_onnx.errors import ConfigError  # noqa: E402
from qhyvit_onnx.facts import GRIDS, PLACEMENT, UNITS  # noqa: E402
from qhyvit_onnx.graph import value  # noqa: E402
from qhyvit_onnx.passes._roundings import roundings  # noqa: E402
from qhyvit_onnx.passes._simulation import sites_of  # noqa: E402
from qhyvit_onnx.passes.insert_qdq import InsertQdq  # noqa: E402
from qhyvit_onnx.passes.reconstruct import Reconstruct  # noqa: E402
from qhyvit_onnx.pipeline import Watcher, default_pipeline, run  # noqa: E402
from qhyvit_onnx.recipes import find_recipe  # noqa: E402
from qhyvit_onnx.runtime import Arithmetic, Options, Session  # noqa: E402
from qhyvit_onnx.simulated import ChannelGrid, TwinGrid  # noqa: E402
from qhyvit_onnx.simulator import hooks_of, simulate, simulation_of  # noqa: E402
from qhyvit_onnx.state import State  # noqa: E402
from qhyvit_onnx.targets import find_target  # noqa: E402
from tests.blocks import mobilevit_v1  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return mobilevit_v1()


@pytest.fixture(scope="module")
def feeds():
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(5)]


def config_of(name, **given):
    quiet = Verification(rounds=0, replay=0, samples=1)
    return CompileConfig(recipe=name, target="arm64", verification=quiet, **given)


def decided(model, feeds, name):
    """Return the state of a compilation in which all is decided and nothing written."""
    config = config_of(name)
    state = State(model, config, Feeds.of(feeds))
    passes = default_pipeline(config, find_target("arm64", frozenset()).with_free_int8())
    names = [item.name for item in passes]
    run(passes[: names.index(InsertQdq.name)], state, Watcher())
    return state


@pytest.fixture(scope="module")
def state_of(model, feeds):
    """Return a function: recipe -> what ``decided`` returns, the same for everyone."""
    return cache(lambda name: decided(model, feeds, name))


class Listener(Watcher):
    """Takes a simulation of what a compilation is about to write."""

    simulation = None

    def finished(self, step, state):
        if step.name == Reconstruct.name:
            self.simulation = simulation_of(state)


@pytest.mark.parametrize("name", ["minmax", "percentile", "easyquant"])
def test_what_is_emitted_is_what_is_simulated(model, feeds, name):
    effort = Effort.DEFAULT if find_recipe(name).needs_evidence else Effort.FAST
    listener = Listener()
    emitted = compile_model(model, feeds, config_of(name, effort=effort), watcher=listener)
    assert emitted.report.recipe == listener.simulation.facts.recipe == name
    assert emitted.report.int8_units == listener.simulation.facts.int8_units > 0
    assert listener.simulation.facts.undeployable == ()
    session = Session(emitted.model, Options(arithmetic=Arithmetic.EXACT))
    gaps = []
    for feed in feeds:
        want, got, exact = (
            item.run(feed)[session.outputs[0]].astype(np.float64)
            for item in (session, listener.simulation, Session(model))
        )
        gaps.append(np.square(want - got).sum() / np.square(want - exact).sum())
    # the same codes: a value in the middle of two may tip over in a sample, hardly in most
    assert np.median(gaps) < 1e-8


def test_simulating_decides_as_compiling_does(model, feeds):
    config, listener = config_of("minmax", effort=Effort.FAST), Listener()
    compile_model(model, feeds, config, watcher=listener)
    simulation = simulate(model, feeds, config)
    for name, array in simulation.run(feeds[0]).items():
        np.testing.assert_array_equal(array, listener.simulation.run(feeds[0])[name])
    assert simulation.facts.steps[-1].name == Reconstruct.name
    assert simulation.facts.seconds > 0


@pytest.mark.parametrize("name", ["fq-vit", "ptq4vit", "repq-vit", "q-hyvit"])
def test_what_cannot_be_emitted_is_simulated(model, feeds, state_of, name):
    simulation = simulation_of(state_of(name))
    facts = simulation.facts
    assert facts.undeployable
    assert (facts.recipe, facts.precision, facts.target) == (name, "w8a8", "arm64")
    assert simulation.inputs == ["x"]
    (output,) = simulation.outputs
    batch = {"x": np.concatenate([feed["x"] for feed in feeds])}
    want, got = Session(model).run(batch)[output], simulation.run(batch)[output]
    # 8 bits on a tiny net of drawn weights: noise, and not more than a tenth of the energy
    assert 0 < np.square(want - got).sum() < 0.1 * np.square(want).sum()
    for index, feed in enumerate(feeds):
        one = simulation.run(feed, [output])[output]
        np.testing.assert_allclose(one, got[index : index + 1], atol=0.05 * np.abs(want).max())


@pytest.mark.parametrize("name", ["fq-vit", "ptq4vit", "repq-vit"])
def test_a_recipe_that_is_never_deployable_is_refused_at_once(name):
    with pytest.raises(ConfigError, match=f"recipe {name} gives a simulation only") as caught:
        compile_model("no such model.onnx", None, config_of(name))
    assert f"qhv-onnx eval MODEL --recipe {name}" in str(caught.value)


def test_a_recipe_that_found_nothing_deployable_is_refused(state_of):
    state = state_of("q-hyvit")
    with pytest.raises(ConfigError, match="recipe q-hyvit gives a simulation only"):
        InsertQdq().run(state)
    assert "QuantizeLinear" not in {node.op for node in state.graph.nodes}


def test_without_torch_it_says_what_to_install(model, feeds, monkeypatch):
    monkeypatch.setattr(module, "torch_is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"needs torch; pip install 'qhyvit-onnx\[torch\]'"):
        simulate(model, feeds)


def test_a_simulation_keeps_nothing_of_the_graph(model, feeds):
    state = decided(model, feeds, "minmax")
    simulation = simulation_of(state)
    before = simulation.run(feeds[0])
    InsertQdq().run(state)
    after = simulation.run(feeds[0])
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name])


def test_heads_are_rounded_where_a_product_reads_them(state_of):
    state = state_of("q-hyvit")
    grids, placement, units = state.get(GRIDS), state.get(PLACEMENT), state.get(UNITS)
    lifted = {n for n, g in grids.simulated.items() if isinstance(g, ChannelGrid) and g.axis == -3}
    assert len(lifted) >= 2
    sites = sites_of(state.graph, units, placement)
    chosen = [unit for unit in units if unit.name in placement.int8]
    found = roundings(state.graph, sites.activations, chosen, grids)
    readers = {unit.name: [t.name for t in unit.inputs] for unit in chosen}
    for key, grid in found.items():
        if isinstance(grid, ChannelGrid) and grid.axis == -3:
            assert isinstance(key, tuple)
            assert readers[key[0]][key[1]] in lifted


def test_biases_are_rounded_where_integers_are_summed(state_of):
    plain = dict(_biases(state_of("minmax")))
    assert any(not np.array_equal(given, bias) for given, bias in plain.values())
    apart = dict(_biases(state_of("repq-vit")))
    assert apart.keys() == plain.keys()  # all its weights have zero points: nothing is an integer
    assert all(np.array_equal(given, bias) for given, bias in apart.values())


def _biases(state):
    """Yield the layers with the bias that was given, and the one that is simulated."""
    hooks, units = hooks_of(state), {unit.name: unit for unit in state.get(UNITS)}
    sites = sites_of(state.graph, list(units.values()), state.get(PLACEMENT))
    for place, name in sites.biases.items():
        bias = np.asarray(value(units[name].bias))
        yield name, (bias, hooks[place](torch.from_numpy(bias)).numpy())


def test_softmax_and_tails_have_two_ranges(state_of):
    grids = state_of("ptq4vit").get(GRIDS)
    twins = [grid for grid in grids.simulated.values() if isinstance(grid, TwinGrid)]
    assert any(grid.split > 0 for grid in twins)  # after a softmax
    assert any(grid.split == 0 for grid in twins)  # after a SiLU
