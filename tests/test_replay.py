# SPDX-License-Identifier: Apache-2.0
"""Emitted models are what their reference kernels say, node by node; what is not is found."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from qhyvit_onnx import replay as replay_module
from qhyvit_onnx.audit import INTEGER_KERNELS
from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig, Guard, Verification
from qhyvit_onnx.errors import ConfigError, PassError
from qhyvit_onnx.replay import Cause, Counted, replay
from qhyvit_onnx.replay_record import ReplayRecord
from qhyvit_onnx.runtime import Arithmetic, Options, Session, optimized
from tests.blocks import FAMILIES, SIDE

EXACT, STOCK = (Options(arithmetic=it) for it in (Arithmetic.EXACT, Arithmetic.STOCK))
INTEGER = INTEGER_KERNELS | {"QuantizeLinear", "DequantizeLinear"}
GRID = {"s": np.float32(0.05), "z": np.uint8(117)}


def images(count, shape, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": x} for x in rng.standard_normal((count, *shape)).astype(np.float32)]


def compiled(model, feeds, target, **settings):
    config = CompileConfig(
        target=target,
        calib_samples=2,
        guard=Guard(samples=0),  # it would leave layers float
        verification=Verification(samples=1, rounds=0, **settings),
    )
    return compile_model(model, feeds, config)


@pytest.mark.parametrize(
    ("family", "target"),
    [(family, "arm64") for family in FAMILIES]
    + [(family, "x64-avx2") for family in ("MobileViT", "EfficientFormerV2", "convolutional")],
)
def test_every_integer_node_of_every_family_is_exact(family, target):
    model = compiled(FAMILIES[family](), images(3, (1, 3, SIDE, SIDE)), target, replay=0).model
    # weights for AVX2 are kept from saturating: there the stock arithmetic is exact too
    options = STOCK if target == "x64-avx2" else EXACT
    found = replay(model, images(2, (1, 3, SIDE, SIDE), seed=1), options)
    assert found.exact, found.differing()
    assert (found.refused, found.samples) == ((), 2)
    running = [node.op_type for node in optimized(model, options).graph.node]
    kernels = [layer.kernel for layer in found.layers]
    assert [op for op in kernels if op in INTEGER] == [op for op in running if op in INTEGER]
    assert {layer.counted for layer in found.layers if layer.kernel == "QLinearConv"} <= {
        Counted.STEPS
    }


# --- one small net, quantized by hand -------------------------------------------------------------

CONV = """g (uint8[1, 64, 6, 6] q) => (uint8[1, 32, 6, 6] y) {
    x = DequantizeLinear (q, s, z)
    wd = DequantizeLinear <axis = 0> (w, ws, wz)
    [conv] a = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, wd)
    aq = QuantizeLinear (a, t, z)
    ad = DequantizeLinear (aq, t, z)
    [gate] g = Sigmoid (ad)
    gq = QuantizeLinear (g, r, z)
    gd = DequantizeLinear (gq, r, z)
    [silu] m = Mul (ad, gd)
    y = QuantizeLinear (m, t, z)
}"""


def conv_net(build, peak):
    """Return a net that runs on integers from end to end; weights are up to ``peak``."""
    rng = np.random.default_rng(3)
    return build(
        CONV,
        w=rng.integers(-peak, peak + 1, (32, 64, 3, 3)).astype(np.int8),
        ws=np.full(32, 0.01, np.float32),
        wz=np.zeros(32, np.int8),
        t=np.float32(0.05 * 0.01 * peak * 150),
        r=np.float32(1 / 255),
        **GRID,
    )


def codes(seed=0):
    shape = (1, 64, 6, 6)
    return {"q": np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)}


def test_what_is_replayed_is_what_runs(build):
    model = conv_net(build, 127)
    shown = Session(
        optimized(model, EXACT, weights=True), replace(EXACT, optimize=False, threads=1)
    )
    plain = Session(model, EXACT)
    feed = codes()
    np.testing.assert_array_equal(shown.run(feed)["y"], plain.run(feed)["y"])


def test_layers_have_the_names_of_their_nodes(build):
    found = replay(conv_net(build, 127), [codes()], EXACT)
    assert found.exact
    kernels = {layer.kernel for layer in found.layers}
    assert kernels == {"Transpose", "QLinearConv", "QLinearSigmoid", "QLinearMul"}
    named = {layer.kernel: layer.name for layer in found.layers}
    assert named["QLinearConv"].startswith("conv")


def test_saturation_is_found_and_named(build):
    model = conv_net(build, 127)
    found = replay(model, [codes(0), codes(1)], STOCK)
    # on AVX2 without VNNI pairs of products saturate in the stock arithmetic; elsewhere nothing
    # does, and on every host the two arithmetics tell the same story
    ran = [Session(model, it).run(codes(0))["y"] for it in (STOCK, EXACT)]
    assert found.exact == np.array_equal(*ran)
    for layer in found.differing():
        assert (layer.kernel, layer.cause) == ("QLinearConv", Cause.SATURATION)
    # a pair of weights up to 64 makes 2 x 255 x 64 = 32,640 at most: it fits into 16 bits
    assert replay(conv_net(build, 64), [codes()], STOCK).exact


def test_a_spoiled_weight_is_found_where_it_is(build, monkeypatch):
    def spoiled(call):
        if call.node.op_type == "QLinearConv":
            weight = call.inputs[3].copy()
            weight[5, 7, 1, 1] += 40
            call = replace(call, inputs=[*call.inputs[:3], weight, *call.inputs[4:]])
        return reference(call)

    reference = replay_module.reference
    monkeypatch.setattr(replay_module, "reference", spoiled)
    found = replay(conv_net(build, 63), [codes()], STOCK)
    (layer,) = found.differing()  # the layers after it read what the kernel wrote: no difference
    assert (layer.kernel, layer.cause) == ("QLinearConv", Cause.UNKNOWN)
    # 40 units of weight times up to 138 of activation, at 9,450 sums a step
    assert layer.difference == found.largest(Counted.STEPS) == 1


def test_a_step_too_many_is_found_on_the_first_sample_alone(build, monkeypatch):
    seen = []

    def off_by_one(call):
        made = reference(call)
        if call.node.op_type == "QLinearMul" and not seen:
            seen.append(call.node.name)
            made[0].reshape(-1)[-1] += 1
        return made

    reference = replay_module.reference
    monkeypatch.setattr(replay_module, "reference", off_by_one)
    found = replay(conv_net(build, 63), [codes(0), codes(1)], EXACT)
    assert [(layer.kernel, layer.difference) for layer in found.differing()] == [("QLinearMul", 1)]


def test_another_shape_is_our_bug(build, monkeypatch):
    monkeypatch.setattr(replay_module, "reference", lambda _: [np.zeros(3, np.uint8)])
    with pytest.raises(PassError, match=r"gives uint8\[3\], onnxruntime uint8\["):
        replay(conv_net(build, 63), [codes()], EXACT)


# --- other kinds of node --------------------------------------------------------------------------


def quantized(text):
    """Return ``text`` with (x) and (y) read and written through one grid."""
    return f"""g (float[2, 8, 6, 6] x) => (float[a, b, c, d] y) {{
        xq = QuantizeLinear (x, s, z)
        xd = DequantizeLinear (xq, s, z)
        {text}
        yq = QuantizeLinear (m, s, z)
        y = DequantizeLinear (yq, s, z)
    }}"""


@pytest.mark.parametrize(
    ("text", "kernel", "arrays"),
    [
        ("m = Transpose <perm = [0, 2, 3, 1]> (xd)", "Transpose", {}),
        ("m = Slice (xd, from, to)", "Slice", {"from": [0, 1, 2, 3], "to": [2, 7, 6, 5]}),
        ("m = Gather <axis = 1> (xd, at)", "Gather", {"at": [3, 0, 7, 7]}),
        ("m = DepthToSpace <blocksize = 2> (xd)", "DepthToSpace", {}),
        ("m = MaxPool <kernel_shape = [3, 2], pads = [1, 0, 1, 1]> (xd)", "MaxPool", {}),
        ("m = AveragePool <kernel_shape = [2, 2]> (xd)", "QLinearAveragePool", {}),
        ("m = GlobalAveragePool (xd)", "QLinearGlobalAveragePool", {}),
        ("m = LeakyRelu <alpha = 0.2> (xd)", "QLinearLeakyRelu", {}),
        ("m = Add (xd, xd)", "QLinearAdd", {}),
        ("m = MatMul (xd, xd)", "QLinearMatMul", {}),
        ("m = Concat <axis = 1> (xd, xd)", "QLinearConcat", {}),
        ("m = Reshape (xd, to)", "Reshape", {"to": [2, 4, 12, 6]}),
    ],
)
def test_kinds_of_node(build, text, kernel, arrays):
    given = {name: np.int64(array) for name, array in arrays.items()}
    found = replay(build(quantized(text), **given, **GRID), images(2, (2, 8, 6, 6)), EXACT)
    assert kernel in {layer.kernel for layer in found.layers}
    assert found.exact
    assert found.refused == ()


def test_what_has_no_reference_is_listed(build):
    text = "c = Greater (x, s) m = Where (c, xd, xd)"
    found = replay(build(quantized(text), **GRID), images(1, (2, 8, 6, 6)), EXACT)
    assert found.unreplayed() == {"QLinearWhere": 1}
    ((_, miss),) = found.refused
    assert miss.reason == "no reference kernel"
    assert found.exact  # says nothing of what was not replayed


def test_bodies_are_listed(build):
    text = """g (float[2, 4] x, bool c) => (float[2, 4] y) {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        [choice] y = If (c) <
            then_branch = yes () => (float[2, 4] t) { t = Neg (d) },
            else_branch = no () => (float[2, 4] e) { e = Exp (d) }
        >
    }"""
    feeds = [{**images(1, (2, 4))[0], "c": np.array(True)}]  # noqa: FBT003  an ONNX bool
    found = replay(build(text, **GRID), feeds, EXACT)
    assert found.unreplayed() == {"If": 1}
    assert found.refused[0][1].node == "choice"


def test_a_float_model_has_nothing_to_replay(build):
    found = replay(
        build("g (float[2, 4] x) => (float[2, 4] y) { y = Exp (x) }"), images(1, (2, 4)), STOCK
    )
    assert (found.layers, found.refused) == ((), ())
    assert found.largest(Counted.STEPS) == found.largest(Counted.ULPS) == 0.0


# --- in a compilation -----------------------------------------------------------------------------


def test_the_report_says_what_was_replayed():
    model, feeds = FAMILIES["MobileViT"](), images(4, (1, 3, SIDE, SIDE))
    report = compiled(model, feeds, "arm64").report
    assert report.replay.samples == 1
    assert report.replay.layers > report.int8_units > 0
    assert report.replay.largest_steps == report.replay.largest_ulps == 0.0
    assert (report.replay.differing, report.replay.unreplayed) == ([], {})
    assert report.passes[-1].note.endswith(", replay exact")
    written = json.loads(report.model_dump_json())["replay"]
    assert ReplayRecord.model_validate(written) == report.replay
    assert compiled(model, feeds, "arm64", replay=0).report.replay is None


def test_a_difference_is_stated(monkeypatch):
    def spoiled(call):
        made = reference(call)
        if call.node.op_type == "QuantizeLinear":
            made[0].reshape(-1)[0] ^= 3
        return made

    reference = replay_module.reference
    monkeypatch.setattr(replay_module, "reference", spoiled)
    feeds = images(4, (1, 3, SIDE, SIDE))
    report = compiled(FAMILIES["LeViT"](), feeds, "arm64").report
    assert 1 <= report.replay.largest_steps <= 3
    assert {item.kernel for item in report.replay.differing} == {"QuantizeLinear"}
    assert {item.cause for item in report.replay.differing} == {"unknown"}
    assert f"replay off by {report.replay.largest_steps:g} steps" in report.passes[-1].note


def test_a_number_of_replays_that_cannot_be():
    with pytest.raises(ConfigError, match="replays"):
        Verification(replay=-1)


def test_weights_come_with_the_optimized_graph_when_asked_for(build):
    model = conv_net(build, 127)
    graphs = [optimized(model, EXACT, weights=weights).graph for weights in (False, True)]
    inside = [
        sum(x.data_location != onnx.TensorProto.EXTERNAL for x in graph.initializer)
        for graph in graphs
    ]
    assert inside[0] < inside[1] == len(graphs[1].initializer)
