# SPDX-License-Identifier: Apache-2.0
"""Weigh gives evidence of every tensor, layer and product, or says why not; changes nothing."""

import subprocess
import sys

import numpy as np
import onnx
import pytest

from qhyvit_onnx import effort
from qhyvit_onnx.config import CompileConfig, Effort, Folding, Scope
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.effort import effort_of
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.facts import BRIDGES, EVIDENCE, RANGES
from qhyvit_onnx.passes import _evidence, weigh
from qhyvit_onnx.passes.calibrate import Calibrate
from qhyvit_onnx.passes.detect_bridges import DetectBridges
from qhyvit_onnx.passes.fold_ranges import FoldRanges
from qhyvit_onnx.passes.weigh import Weigh
from qhyvit_onnx.state import State
from qhyvit_onnx.units import LAYERS, Kind, find_units, is_softmax, source_of
from tests.blocks import FAMILIES, mobilevit_v1

# like tests/kernels, which skip whole files; what is left must hold in a torch-free installation
needs_torch = pytest.mark.skipif(not effort.torch_is_installed(), reason="torch is an extra")

RELU = (
    "g (float[N, 4, 6, 6] x) => (float[N, 6, 6, 6] y) "
    "{ c = Conv <pads = [1, 1, 1, 1]> (x, w) y = Relu (c) }"
)
BIASED = (
    "g (float[N, 5, 4] x) => (float[N, 5, 3] y) { m = MatMul (x, w) a = Add (m, b) y = Relu (a) }"
)


def samples(model, count=4):
    rng = np.random.default_rng(3)
    ports = {
        port.name: [dim.dim_value or 1 for dim in port.type.tensor_type.shape.dim]
        for port in model.graph.input
    }
    return [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in ports.items()}
        for _ in range(count)
    ]


def weighed(model, feeds=None, **config):
    """Return (evidence, outcome, state) of everything up to Weigh."""
    feeds = Feeds.of(feeds or samples(model))
    held = State(model, CompileConfig(**config), feeds)
    DetectBridges().run(held)
    Calibrate().run(held)
    FoldRanges(Folding(scope=Scope.OFF)).run(held)
    outcome = Weigh().run(held)
    return held.get(EVIDENCE), outcome, held


@needs_torch
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_everything_the_searches_ask_for_is_there(family):
    evidence, outcome, held = weighed(family(), samples(family(), 2))
    units, stats = find_units(held.graph), held.get(RANGES)
    sources = [source_of(t) for u in units for t in (*u.inputs, u.output, *u.interior)]
    assert set(evidence.tensors) == {
        t.name for t in sources if t.name in stats and not is_softmax(t)
    }
    assert set(evidence.layers) == {u.name for u in units if u.kind in LAYERS}
    assert set(evidence.products) == {u.name for u in units if u.kind is Kind.PRODUCT}
    crossed = {name for bridge in held.get(BRIDGES) for name in bridge.outputs}
    assert {u.output.name for u in units} | crossed == set(evidence.gains)
    assert outcome.misses == {}
    for unit in units:
        if unit.kind in LAYERS:
            found = evidence.layers[unit.name]
            channels = unit.weight.shape[unit.weight_axis]
            groups = unit.node.attrs.get("group", 1) if unit.node.op == "Conv" else 1
            width = unit.weight.values.size // channels
            assert found.gram.shape == (groups, width, width)
            assert found.rows.shape[1:] == (groups, width)
            assert found.gains.shape == (len(found.rows), channels)


@needs_torch
def test_the_note_says_what_was_done():
    model = mobilevit_v1()
    evidence, outcome, _ = weighed(model)
    assert outcome.changed == 0
    assert outcome.note == (
        "4 samples; a class drawn from its own softmax; "
        f"{len(evidence.tensors)} tensors, {len(evidence.layers)} layers, 4 products"
    )
    assert set(evidence.losses) == {out.name for out in model.graph.output}


@needs_torch
def test_outputs_with_the_same_loss_are_counted(build):
    text = (
        "g (float[N, 4] x) => (float[N, 3] y, float[N, 3] z, int64[N, 1] i) "
        "{ y = MatMul (x, w) z = Softmax (y) i = ArgMax <axis = 1> (y) }"
    )
    _, outcome, _ = weighed(build(text, w=(4, 3)))
    assert "; a class drawn from its own softmax (2 outputs), none: it holds" in outcome.note


@needs_torch
def test_the_graph_stays_as_it_is():
    model = mobilevit_v1()
    before = State(model, CompileConfig(), ()).model()
    assert weighed(model)[2].model() == before


@needs_torch
def test_two_runs_find_the_same():
    first, second = (weighed(mobilevit_v1(), seed=5)[0] for _ in range(2))
    for name, found in first.tensors.items():
        assert np.array_equal(found.gains, second.tensors[name].gains)
    for name, found in first.layers.items():
        assert np.array_equal(found.gram, second.layers[name].gram)
    assert first.gains == second.gains
    assert weighed(mobilevit_v1(), seed=6)[0].gains != first.gains


@needs_torch
@pytest.mark.parametrize(
    ("text", "shape", "between"), [(RELU, (6, 4, 3, 3), "c"), (BIASED, (4, 3), "a")]
)
def test_gains_of_a_layer_are_those_before_its_relu(build, text, shape, between):
    """Behind random signs, a gain is 1 where Relu passes and 0 where it does not."""
    model = build(text, w=shape, **({"b": (3,)} if between == "a" else {}))
    evidence, _, _ = weighed(model, samples(model, 1))
    (layer,) = evidence.layers.values()
    assert set(np.unique(layer.gains)) == {0.0, 1.0}
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    flat = weight.reshape(6, -1).T if between == "c" else weight
    bias = 0 if between == "c" else onnx.numpy_helper.to_array(model.graph.initializer[1])
    outputs = layer.rows[:, 0] @ flat + bias
    sure = np.abs(outputs) > 1e-5
    np.testing.assert_array_equal((outputs > 0)[sure], (layer.gains == 1)[sure])
    assert evidence.tensors["y"].gains.min() == 1.0


@needs_torch
def test_only_so_many_samples_are_run_back(build, monkeypatch):
    monkeypatch.setattr(weigh, "SAMPLES", 3)
    heard = []
    model = build(BIASED, w=(4, 3), b=(3,))
    held = weighed(model)[2]
    again = State(model, CompileConfig(), held.calibration)
    again.tick = lambda done, total: heard.append((done, total))
    again._facts = {k: v for k, v in held._facts.items() if k is not EVIDENCE}
    assert Weigh().run(again).note.startswith("3 samples; ")
    assert heard == [(1, 3), (2, 3), (3, 3)]


@needs_torch
def test_an_op_without_a_kernel_is_named_and_what_lies_before_it_counted(build):
    text = (
        "g (float[4, 2, 3] x) => (float[1, 2, 4] y) { a = MatMul (x, k) "
        "s, h, e = LSTM <hidden_size = 5> (a, w, r) y = MatMul (h, m) }"
    )
    model = build(text, w=(1, 20, 3), r=(1, 20, 5), k=(3, 3), m=(5, 4))
    evidence, outcome, held = weighed(model)
    names = {unit.node.outputs[0].name: unit.name for unit in find_units(held.graph)}
    assert set(evidence.layers) == {names["y"]}
    assert "no gradient passes LSTM" in outcome.note
    assert outcome.misses["layers without a gradient"] == 1
    assert outcome.misses["tensors without a gradient"] == len({"x", "a"} & set(held.get(RANGES)))


@needs_torch
def test_a_layer_too_wide_for_a_gram_is_counted(build, monkeypatch):
    monkeypatch.setattr(_evidence, "GRAM_NUMBERS", 4**2 - 1)
    evidence, outcome, _ = weighed(build(BIASED, w=(4, 3), b=(3,)))
    assert (set(evidence.layers), bool(evidence)) == (set(), True)
    assert outcome.misses == {"layers too wide for a gram": 1}


@needs_torch
def test_a_net_without_float_outputs_gives_nothing_and_says_so(build):
    text = "g (float[N, 4] x) => (int64[N, 1] y) { a = MatMul (x, w) y = ArgMax <axis = 1> (a) }"
    evidence, outcome, _ = weighed(build(text, w=(4, 3)))
    assert not evidence
    assert "none: it holds no floats; 0 tensors" in outcome.note


def test_effort_fast_gives_empty_evidence_and_says_so(build):
    evidence, outcome, _ = weighed(build(BIASED, w=(4, 3), b=(3,)), effort=Effort.FAST)
    assert not evidence
    assert outcome.note == "off (effort fast: errors count alike everywhere)"


def test_effort_fast_does_not_import_torch():
    code = (
        "import sys\n"
        "from qhyvit_onnx import passes\n"
        "from tests.passes.test_weigh import weighed, BIASED\n"
        "from tests.conftest import build_model\n"
        "from qhyvit_onnx.config import Effort\n"
        "weighed(build_model(BIASED, w=(4, 3), b=(3,)), effort=Effort.FAST)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_torch_the_note_says_how_to_get_it(build, monkeypatch):
    monkeypatch.setattr(effort, "find_spec", lambda name: None)
    evidence, outcome, _ = weighed(build(BIASED, w=(4, 3), b=(3,)))
    assert not evidence
    assert outcome.note == (
        "off (no torch: errors count alike everywhere; "
        "pip install 'qhyvit-onnx[torch]' weighs them)"
    )


def test_the_effort_that_is_made(monkeypatch):
    for wish in Effort:
        monkeypatch.setattr(effort, "find_spec", lambda name: object())
        assert effort_of(CompileConfig(effort=wish)) is wish
    assert effort_of(CompileConfig()) is Effort.DEFAULT
    monkeypatch.setattr(effort, "find_spec", lambda name: None)
    assert effort_of(CompileConfig()) is Effort.FAST
    assert effort_of(CompileConfig(effort=Effort.FAST)) is Effort.FAST
    for wish in (Effort.DEFAULT, Effort.MAX):
        with pytest.raises(ConfigError, match=r"needs torch; pip install 'qhyvit-onnx\[torch\]'"):
            effort_of(CompileConfig(effort=wish))


@needs_torch
def test_the_device(monkeypatch):
    import torch

    from qhyvit_onnx.kernels.devices import device_of

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = [device_of(CompileConfig(device=wish)) for wish in ("auto", "cpu", "cuda")]
    assert found == ["cuda", "cpu", "cuda"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(CompileConfig()) == "cpu"
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        device_of(CompileConfig(device="cuda"))
