# SPDX-License-Identifier: Apache-2.0
"""Folding on the bundled trained hybrid: spread and offsets put into its bridges do no harm."""

from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest

from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig, Effort, Folding, Guard, Scope, Verification
from qhyvit_onnx.data import open_feeds
from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.metrics import Comparison
from qhyvit_onnx.model_io import input_specs
from qhyvit_onnx.runtime import Arithmetic, Options, Session

TOOLS = Path(__file__).resolve().parent.parent / "tools"
DEMO = TOOLS / "demo"


@pytest.fixture(scope="module")
def tool():
    """Return ``tools/injection.py``: the scripts there import each other by bare name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        return import_module("injection")


@pytest.fixture(scope="module")
def demo():
    return onnx.load(DEMO / "model.onnx")


def pictures(folder, count, demo):
    recipe = str(DEMO / "preprocess.toml")
    feeds = open_feeds(DEMO / folder, input_specs(demo), samples=count, preprocess=recipe)
    return list(feeds)


@pytest.fixture(scope="module")
def calibration(demo):
    return pictures("calib", 8, demo)


@pytest.fixture(scope="module")
def evaluation(demo):
    return pictures("eval", 12, demo)


@pytest.fixture(scope="module", params=["random", "positive"])
def injected(request, tool, demo, calibration):
    return tool.inject(demo, calibration, tool.Dose(signs=tool.Signs(request.param)))


def quantized(model, scope, calibration):
    config = CompileConfig(
        target="arm64",
        calib_samples=len(calibration),
        effort=Effort.FAST,  # corrected biases would make up for much of what is shown
        folding=Folding(scope=scope),
        guard=Guard(samples=0),  # it would leave what suffers float
        verification=Verification(samples=1, rounds=0),
    )
    return compile_model(model, calibration, config)


def signal_over_noise(demo, compiled, evaluation):
    """Return the dB of the emitted model's logits against those of the demo model itself."""
    options = Options(arithmetic=Arithmetic(compiled.report.arithmetic))
    float_session, session = Session(demo), Session(compiled.model, options)
    comparison, name = Comparison(), float_session.outputs[0]
    for feed in evaluation:
        comparison.add(float_session.run(feed)[name], session.run(feed)[name])
    return comparison.result().sqnr_db


@pytest.fixture(scope="module")
def untouched(demo, calibration, evaluation):
    """Return what int8 makes of the model as it is."""
    return signal_over_noise(demo, quantized(demo, Scope.ALL, calibration), evaluation)


def test_injection_leaves_the_output_as_it_is(demo, injected, evaluation):
    before, after = Session(demo), Session(injected.model)
    for feed in evaluation:
        want, got = (session.run(feed)[before.outputs[0]] for session in (before, after))
        # float32 carries 20 sigma beside the signal: 2^-24 of it, summed over 80 channels
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.ptp(want))


def test_every_bridge_of_the_demo_is_hit(injected):
    kinds = [(site.source.node.op, bool(site.shifted.any())) for site in injected.sites]
    # two stages: the norm before qkv, the values, the norm before the way back to the map
    stage = [("LayerNormalization", True), ("MatMul", False), ("LayerNormalization", True)]
    assert kinds == 2 * stage
    assert all(miss.reason for miss in injected.misses)


def test_the_dose_is_what_was_asked_for(tool, demo, injected, calibration):
    """Measured on the two models, by channel: factor of the deviations, mean over deviation."""
    site = injected.sites[0]
    name = site.source.output.name
    before, after = (moments(model, name, calibration) for model in (demo, injected.model))
    factors = after[1] / before[1]
    assert factors.max() / factors.min() == pytest.approx(tool.Dose().spread, rel=1e-3)
    # the norm's own means were there before
    moved = after[0] / after[1] - before[0] / before[1]
    np.testing.assert_allclose(np.abs(moved), tool.Dose().sigmas, rtol=1e-3)


def moments(model, name, feeds):
    """Return mean and deviation, (C,) each, of a tensor whose channels are its last axis."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.append(onnx.ValueInfoProto(name=name))
    session = Session(probe)
    x = np.concatenate([session.run(feed, [name])[name] for feed in feeds]).astype(np.float64)
    x = x.reshape(-1, x.shape[-1])
    return x.mean(axis=0), x.std(axis=0)


def test_a_model_without_bridges_is_refused(tool, build):
    text = "g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) { y = Conv (x, w) }"
    x = np.zeros((1, 4, 8, 8), np.float32)
    with pytest.raises(ModelError, match="no tensor of a bridge"):
        tool.inject(build(text, w=(4, 4, 1, 1)), [{"x": x}])


def test_without_folding_int8_is_ruined(demo, injected, calibration, evaluation, untouched):
    """The injection is harsh enough to show something."""
    off = signal_over_noise(demo, quantized(injected.model, Scope.OFF, calibration), evaluation)
    assert off < untouched - 10


def test_folding_takes_it_all_out_again(demo, injected, calibration, evaluation, untouched):
    compiled = quantized(injected.model, Scope.ALL, calibration)
    found = signal_over_noise(demo, compiled, evaluation)
    # the spread of the values moves the step of one grid a stage, and 12 pictures are few
    assert found > untouched - 3


@pytest.mark.parametrize("injected", ["random"], indirect=True)
def test_what_no_norm_writes_needs_ranges(demo, injected, calibration, evaluation, untouched):
    """The values of attention are written by a layer: folding the norms leaves their spread."""
    norms = signal_over_noise(demo, quantized(injected.model, Scope.NORMS, calibration), evaluation)
    assert norms < untouched - 3


GATED = """
    [first] p = Conv <pads = [1, 1, 1, 1], group = 64> (x, deep, b1)
    m = GlobalAveragePool (p) [narrow] e = Conv (m, squeeze, b2) r = Relu (e)
    [widen] h = Conv (r, excite, b3) g = Sigmoid (h) [gate] s = Mul (p, g)
    [last] y = Conv (s, point, b1)"""
SCALED = """
    h = HardSwish (x) a = Mul (h, factor) p = Add (a, offset)
    [last] y = Conv (p, point, b1)"""


@pytest.mark.parametrize("body", [GATED, SCALED], ids=["squeeze and excitation", "one factor"])
def test_spread_beside_a_function_is_folded(build, body):
    """Behind a gate of its own, or a factor that all channels share; channels 1 to 3,000 apart."""
    rng = np.random.default_rng(0)
    spread = np.float32(np.geomspace(1, 3000, 64))[rng.permutation(64)]
    weights = {
        "deep": rng.normal(0, 0.3, (64, 1, 3, 3)) * spread[:, None, None, None],
        "squeeze": rng.normal(0, 0.1, (16, 64, 1, 1)) / spread[None, :, None, None],
        "excite": rng.normal(0, 0.3, (64, 16, 1, 1)),
        "point": rng.normal(0, 0.1, (64, 64, 1, 1)) / spread[None, :, None, None],
        **{name: rng.normal(0, 0.1, size) for name, size in (("b1", 64), ("b2", 16), ("b3", 64))},
        "factor": 0.7, "offset": 0.1,
    }  # fmt: skip
    used = {name: np.float32(array) for name, array in weights.items() if name in body}
    model = build(f"g (float[1, 64, 16, 16] x) => (float[a, b, c, d] y) {{ {body} }}", **used)
    size = 1 if "deep" in body else spread[:, None, None]
    feeds = [
        {"x": np.float32(rng.normal(0, size, (1, 64, 16, 16)))} for _ in range(8)
    ]  # fmt: skip
    plain, folded = (
        quantized(model, scope, feeds).report.outputs[0].sqnr_db
        for scope in (Scope.NORMS, Scope.ALL)
    )
    assert plain < 15 < 30 < folded
