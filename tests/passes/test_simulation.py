# SPDX-License-Identifier: Apache-2.0
"""A simulation rounds where the emitted model does: both give the same numbers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the executor runs in torch, an extra")

from qhyvit_onnx.config import CompileConfig, Effort, Guard, Verification  # noqa: E402
from qhyvit_onnx.data import Feeds  # noqa: E402
from qhyvit_onnx.facts import GRIDS, PLACEMENT  # noqa: E402
from qhyvit_onnx.kernels.executor import Executor  # noqa: E402
from qhyvit_onnx.kernels.fake_quant import fake_quantize  # noqa: E402
from qhyvit_onnx.passes._simulation import sites_of  # noqa: E402
from qhyvit_onnx.pipeline import default_pipeline  # noqa: E402
from qhyvit_onnx.programs import program_of  # noqa: E402
from qhyvit_onnx.runtime import Arithmetic, Options, Session  # noqa: E402
from qhyvit_onnx.state import State  # noqa: E402
from qhyvit_onnx.targets import find_target  # noqa: E402
from qhyvit_onnx.units import find_units  # noqa: E402
from tests.blocks import efficientformer_v1, mobilevit_v1, mobilevit_v2  # noqa: E402


def fed(model, count=4):
    rng = np.random.default_rng(1)
    port = model.graph.input[0]
    shape = [dim.dim_value or 1 for dim in port.type.tensor_type.shape.dim]
    return [{port.name: rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def hooks_of(state):
    """Return hooks that round on the grids of ``state``."""
    grids, units = state.get(GRIDS), {unit.name: unit for unit in find_units(state.graph)}
    sites = sites_of(state.graph, list(units.values()), state.get(PLACEMENT))

    def rounding(owner):
        grid = grids.activations[owner]
        scale = torch.tensor(np.float32(grid.scale))
        return lambda x: fake_quantize(x, scale, grid.zero_point, 0, grid.top)

    hooks = {key: rounding(owner) for key, owner in sites.activations.items()}
    for place, name in sites.biases.items():
        if name in sites.rounded_biases:
            owner = sites.owners[units[name].inputs[0].name]
            unit = np.float32(grids.activations[owner].scale) * grids.weights[name].scale
            hooks[place] = rounded_to(torch.from_numpy(unit))
    for place, name in sites.weights.items():
        weight = torch.from_numpy(grids.weight_of(units[name]))
        hooks[place] = lambda _, weight=weight: weight
    return hooks


def rounded_to(unit):
    return lambda bias: torch.round(bias / unit) * unit


@pytest.mark.parametrize("family", [mobilevit_v1, mobilevit_v2, efficientformer_v1])
@pytest.mark.parametrize("precision", ["w8a8", "w4a4"])
def test_the_simulation_gives_what_is_emitted(family, precision):
    model = family()
    feeds = fed(model)
    config = CompileConfig(
        precision=precision,
        effort=Effort.FAST,
        guard=Guard(samples=0),
        verification=Verification(rounds=0, replay=0),
    )
    state = State(model, config, Feeds.of(feeds))
    passes = default_pipeline(config, find_target("arm64", frozenset()))
    names = [item.name for item in passes]
    for item in passes[: names.index("insert-qdq")]:
        item.run(state)
    program, hooks = program_of(state.model()), hooks_of(state)
    float_out = Session(state.model()).run(feeds[0])
    passes[names.index("insert-qdq")].run(state)
    emitted = Session(state.model(), Options(arithmetic=Arithmetic.EXACT)).run(feeds[0])
    (name,) = emitted
    simulated = Executor(program).run(feeds[0], [name], hooks=hooks)[name].numpy()
    error = np.square(emitted[name] - float_out[name]).sum()
    gap = np.square(emitted[name] - simulated).sum()
    assert error > 0
    # integer sums are exact and float sums nearly: the same codes, but for values that lie within
    # float32's last places of the middle between two
    assert gap < 1e-6 * error
