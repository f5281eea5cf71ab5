# SPDX-License-Identifier: Apache-2.0
"""Bits per layer: what is written, what wins, and that emitted codes stay inside them."""

import functools

import numpy as np
import onnx
import pytest

from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig, Effort, Guard, Verification
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.precision import Precision, Widths
from qhyvit_onnx.runtime import Session
from tests.blocks import mobilevit_v1

LAYERS = ("stem", "block/a", "block/b", "head")


@pytest.mark.parametrize("text", ["w8a8", "w4a8", "w6a4"])
def test_precision_reads_what_it_writes(text):
    assert str(Precision.parse(text)) == text


@pytest.mark.parametrize("text", ["w8", "a8w8", "w5a8", "w8a16", "W8A8", ""])
def test_precision_refuses_the_rest(text):
    with pytest.raises(ConfigError, match="use wXaY"):
        Precision.parse(text)


def test_edges_are_finer_and_the_last_pattern_wins():
    overrides = {"block/*": "w6a6", "block/b": "w8a4"}
    widths = Widths.of("w4a4", "w8a8", overrides, LAYERS)
    assert [str(widths.of_layer(name)) for name in LAYERS] == ["w8a8", "w6a6", "w8a4", "w8a8"]


def test_edges_never_coarsen():
    widths = Widths.of("w8a6", "w4a8", {}, LAYERS)
    assert str(widths.of_layer("stem")) == "w8a8"
    assert str(widths.of_layer("block/a")) == "w8a6"


def test_an_override_may_coarsen_an_edge():
    assert str(Widths.of("w4a4", "w8a8", {"head": "w4a4"}, LAYERS).of_layer("head")) == "w4a4"


@functools.cache
def compiled_at(precision):
    """Return a MobileViT block with random weights, compiled at ``precision``."""
    model = mobilevit_v1()
    shape = [dim.dim_value or 1 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(0)
    name = model.graph.input[0].name
    feeds = [{name: rng.standard_normal(shape).astype(np.float32)} for _ in range(12)]
    config = CompileConfig(
        precision=precision, edge_precision="w4a4", target="arm64", calib_samples=8,
        guard=Guard(samples=0), verification=Verification(rounds=0),
    )  # fmt: skip
    return compile_model(model, feeds, config)


@pytest.fixture(params=["w8a8", "w6a6", "w4a4"])
def emitted(request):
    return Precision.parse(request.param), compiled_at(request.param)


def test_weight_codes_lie_within_their_bits(emitted):
    precision, compiled = emitted
    limit = (1 << (precision.weights - 1)) - 1
    peaks = [
        int(np.abs(onnx.numpy_helper.to_array(item).astype(int)).max())
        for item in compiled.model.graph.initializer
        if item.data_type == onnx.TensorProto.INT8 and "zero_point" not in item.name
    ]
    assert peaks
    assert max(peaks) <= limit
    assert max(peaks) > limit // 2  # some weight uses them


def test_fewer_bits_clip_their_codes(emitted):
    precision, compiled = emitted
    constants = {item.name: item for item in compiled.model.graph.initializer}
    clips = [node for node in compiled.model.graph.node if node.op_type == "Clip"]
    tops = {int(onnx.numpy_helper.to_array(constants[node.input[2]])) for node in clips}
    assert tops == (set() if precision.activations == 8 else {(1 << precision.activations) - 1})


@pytest.mark.parametrize("precision", ["w8a6", "w4a4"])
def test_a_clip_does_not_keep_a_layer_of_few_bits_in_float(build, precision):
    text = """g (float[1, 64, 8, 8] x) => (float[1, 64, 8, 8] y) {
        [first] a = Conv <pads = [1, 1, 1, 1]> (x, v) b = Clip (a, zero, six)
        [second] c = Conv <pads = [1, 1, 1, 1]> (b, w) y = Clip (c, zero, six) }"""
    bounds = {"zero": np.float32(0), "six": np.float32(6)}
    model = build(text, v=(64, 64, 3, 3), w=(64, 64, 3, 3), **bounds)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 64, 8, 8)).astype(np.float32)} for _ in range(8)]
    config = CompileConfig(
        precision=precision, edge_precision=precision, target="arm64", effort=Effort.FAST,
        guard=Guard(samples=0), verification=Verification(rounds=0),
    )  # fmt: skip
    compiled = compile_model(model, feeds, config)
    assert compiled.report.int8_units == 2
    assert compiled.report.replay.largest_steps == 0
    written = Session(compiled.model).run(feeds[0])["y"]
    assert 0.0 == written.min() < 5.0 < written.max() <= 6.0


def test_every_integer_kernel_stays_exact(emitted):
    _, compiled = emitted
    assert compiled.report.int8_units > 0
    assert compiled.report.replay.largest_steps == 0


def test_four_bits_cost_more_than_six():
    eight, six, four = (
        compiled_at(precision).report.outputs[0].sqnr_db for precision in ("w8a8", "w6a6", "w4a4")
    )
    # eight samples of noise say little about the range: clipping on new ones, about 20 dB, hides
    # the step of 6 bits; that of 4 bits is 12 dB wider and shows
    assert four < min(six, eight) - 1.5
