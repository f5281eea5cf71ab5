# SPDX-License-Identifier: Apache-2.0
"""A simulation rounds where the emitted model does: both give the same numbers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the executor runs in torch, an extra")

from qhyvit_onnx.config import CompileConfig, Effort, Guard, Verification  # noqa: E402
from qhyvit_onnx.data import Feeds  # noqa: E402
from qhyvit_onnx.facts import GRIDS  # noqa: E402
from qhyvit_onnx.passes.insert_qdq import InsertQdq  # noqa: E402
from qhyvit_onnx.pipeline import Watcher, default_pipeline, run  # noqa: E402
from qhyvit_onnx.runtime import Arithmetic, Options, Session  # noqa: E402
from qhyvit_onnx.simulator import simulation_of  # noqa: E402
from qhyvit_onnx.state import State  # noqa: E402
from qhyvit_onnx.targets import find_target  # noqa: E402
from tests.blocks import efficientformer_v1, mobilevit_v1, mobilevit_v2  # noqa: E402


def fed(model, count=5):
    rng = np.random.default_rng(1)
    port = model.graph.input[0]
    shape = [dim.dim_value or 1 for dim in port.type.tensor_type.shape.dim]
    return [{port.name: rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def decided(model, feeds, **settings):
    """Return the state of a compilation in which all is decided and nothing written."""
    config = CompileConfig(
        guard=Guard(samples=0), verification=Verification(rounds=0, replay=0), **settings
    )
    state = State(model, config, Feeds.of(feeds))
    passes = default_pipeline(config, find_target("arm64", frozenset()).with_free_int8())
    names = [item.name for item in passes]
    run(passes[: names.index(InsertQdq.name)], state, Watcher())
    return state


def gaps(state, feeds):
    """Return, by sample, the squares of simulated minus emitted over those of emitted - float."""
    simulation, reference = simulation_of(state), Session(state.model())
    InsertQdq().run(state)
    emitted = Session(state.model(), Options(arithmetic=Arithmetic.EXACT))
    (name,) = emitted.outputs
    found = []
    for feed in feeds:
        want, got, exact = (
            item.run(feed)[name].astype(np.float64) for item in (emitted, simulation, reference)
        )
        found.append(np.square(want - got).sum() / np.square(want - exact).sum())
    return found


@pytest.mark.parametrize("family", [mobilevit_v1, mobilevit_v2, efficientformer_v1])
@pytest.mark.parametrize("precision", ["w8a8", "w4a4"])
def test_the_simulation_gives_what_is_emitted(family, precision):
    model = family()
    feeds = fed(model)
    found = gaps(decided(model, feeds, precision=precision, effort=Effort.FAST), feeds)
    # integer sums are exact and float sums nearly: the same codes. Where a value lies within
    # float32's last places of the middle between two, one may become its neighbour, and what
    # follows differs: a rare sample, so that most have nothing but the last places
    assert np.median(found) < 1e-9
    assert max(found) < 0.2


def test_found_codes_and_corrected_biases_are_simulated_too():
    model = mobilevit_v1()
    feeds = fed(model)
    state = decided(model, feeds, effort=Effort.DEFAULT)
    grids = state.get(GRIDS)
    assert grids.codes
    assert grids.biases
    assert np.median(gaps(state, feeds)) < 1e-9
