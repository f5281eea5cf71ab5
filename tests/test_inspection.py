# SPDX-License-Identifier: Apache-2.0
"""What ``inspect`` finds: regions and bridges, norms, work, and with data the trouble spots."""

import json
from dataclasses import asdict

import numpy as np
import onnx
import pytest

from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.errors import ConfigError, DataError, ModelError
from qhyvit_onnx.inspection import inspect_model
from qhyvit_onnx.inspection.trouble import lost, spread
from qhyvit_onnx.kernels.observers import Observer
from qhyvit_onnx.targets import find_target
from tests.blocks import FAMILIES, mobilevit_v1

TARGET = find_target("x64-vnni", frozenset())


@pytest.fixture
def look(tmp_path):
    """Return a function: (model, calibration, options of the config) -> Inspection."""

    def inspect(model, calibration=None, **options):
        onnx.save(model, tmp_path / "net.onnx")
        config = CompileConfig(**options)
        return inspect_model(tmp_path / "net.onnx", TARGET, config, calibration)

    return inspect


def test_a_hybrid_is_three_regions_and_two_bridges(look):
    found = look(mobilevit_v1())
    assert [(r.side, r.size, r.channels_in, r.channels_out) for r in found.regions] == [
        ("local", "8x8", 3, 12),
        ("global", "8x8", 12, 12),
        ("local", "8x8", 12, 5),
    ]
    assert [(b.direction, b.size, b.crosses) for b in found.bridges] == [
        ("in", "8x8", ((0, 1),)),
        ("out", "8x8", ((1, 2),)),
    ]
    assert (0, 2) in found.flows  # the features that are concatenated with what comes back
    assert [(r.layers, r.products) for r in found.regions] == [(3, 0), (8, 4), (3, 0)]


def test_work_of_a_hybrid_is_counted_by_hand(look):
    found = look(mobilevit_v1())
    first = 8 * 8 * (8 * 3 * 9 + 8 * 8 * 9 + 12 * 8)  # stem, conv_kxk, conv_1x1: outputs x loops
    # per transformer on 64 tokens of 12: qkv, proj, both layers of the MLP; QK and AV of 4
    # sequences of 16 tokens, 2 heads of 6
    transformer = 64 * 12 * (36 + 12 + 24 + 24) + 2 * 4 * 2 * 16 * 16 * 6
    last = 8 * 8 * (8 * 12 + 8 * 16 * 9) + 8 * 5  # conv_proj, conv_fusion, classifier
    assert [region.macs for region in found.regions] == [first, 2 * transformer, last]
    assert found.macs == first + 2 * transformer + last


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_hangs_together(look, family):
    found = look(FAMILIES[family]())
    names = [name for region in found.regions for name in region.nodes]
    assert len(set(names)) == len(names)
    assert found.macs == sum(region.macs for region in found.regions) > 0
    ends = {end for link in found.flows for end in link}
    assert ends == (set(range(len(found.regions))) if len(found.regions) > 1 else set())
    assert all(source < target for source, target in found.flows)
    for bridge in found.bridges:
        assert bridge.crosses
        assert all(source <= target for source, target in bridge.crosses)
    assert json.loads(json.dumps(asdict(found)))["schema_version"] == 2


CONVS = """
net (float[N, 3, H, W] x) => (float[N, 8, h, w] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w1)
  b = Relu (a)
  y = Conv <pads = [1, 1, 1, 1]> (b, w2)
}
"""
WEIGHTS = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3)}


def test_work_on_a_free_size_is_unknown_until_the_size_is_given(look, build):
    model = build(CONVS, **WEIGHTS)
    found = look(model)
    assert found.macs is None
    assert [region.macs for region in found.regions] == [None]
    given = look(model, input_shapes={"x": (1, 3, 10, 6)})
    assert given.macs == 10 * 6 * (8 * 3 * 9 + 8 * 8 * 9)
    assert given.regions[0].size == found.regions[0].size  # the compiler still keeps the dims free


def test_the_first_sample_says_how_large_inputs_are(look, build):
    x = np.random.default_rng(0).standard_normal((2, 3, 10, 6)).astype(np.float32)
    found = look(build(CONVS, **WEIGHTS), {"x": x})
    assert found.macs == 10 * 6 * (8 * 3 * 9 + 8 * 8 * 9)


NORMS = """
net (float[1, 4, 8, 8] x) =>
    (float[1, 64, 6] y, float[1, 64, 4] z, float[1, 4, 8, 8] v, float[1, 64, 6] i) {
  a = Conv (x, w1)
  b = BatchNormalization (a, g, o, m, s)
  c = Relu (b)
  [free] d = BatchNormalization (c, g, o, m, s)
  v = Sigmoid (d)
  r = Reshape (c, shape)
  t = Transpose <perm = [0, 2, 1]> (r)
  [taken] e = LayerNormalization (t, g, o)
  y = MatMul (e, w2)
  [read] f = LayerNormalization (t, g, o)
  z = Relu (f)
  [plain] h = LayerNormalization (t, one)
  i = MatMul (h, w2)
}
"""


def test_norms_are_told_by_where_they_went(look, build):
    model = build(
        NORMS, w1=(4, 4, 1, 1), w2=(4, 6), g=(4,), o=(4,), m=(4,), s=np.ones(4, np.float32),
        one=np.ones(4, np.float32), shape=np.array([1, 4, 64]),
    )  # fmt: skip
    found = {norm.kind: norm for norm in look(model).norms}
    batch, layer = found["BatchNormalization"], found["LayerNormalization"]
    assert (batch.count, batch.before, batch.after, batch.bare, batch.left) == (2, 1, 0, 0, 1)
    assert (layer.count, layer.before, layer.after, layer.bare, layer.left) == (3, 0, 1, 1, 1)
    assert batch.reasons
    assert layer.reasons


def test_a_group_norm_spelled_out_is_told_too(look):
    (norm,) = (n for n in look(FAMILIES["MobileViTv2"]()).norms if n.kind == "GroupNorm1")
    assert (norm.count, norm.after, norm.left) == (5, 5, 0)


def test_movement_is_told_by_the_role_of_the_channel(look):
    layout = look(FAMILIES["ViT"]()).layout
    assert sum(layout.roles.values()) == layout.chains > 0
    assert layout.unknown == 0


def test_every_pass_tells_its_near_misses(look):
    found = look(FAMILIES["ViT"]())
    assert [item.name for item in found.passes] == [
        "normalise", "fold-norms", "layout", "detect-bridges",
    ]  # fmt: skip
    bridges = found.passes[-1].misses
    assert sum(bridges.values()) == 1  # patches: a window that no neighbour overlaps


PLANTED = """
net (float[1, 4, 8, 8] x) => (float[1, 6] y) {
  wide = Conv <pads = [1, 1, 1, 1]> (x, w1)
  even = Conv (wide, w2)
  high = Conv (even, w3, far)
  pooled = GlobalAveragePool (high)
  flat = Flatten (pooled)
  y = Gemm <transB = 1> (flat, w4)
}
"""
OFFSET = 1000.0


@pytest.fixture
def planted(build):
    """One wide channel in ``wide``; every channel of ``high`` far above zero."""
    rng = np.random.default_rng(3)
    w1 = rng.standard_normal((16, 4, 3, 3)).astype(np.float32)
    w1[5] *= 40.0
    w2 = rng.standard_normal((8, 16, 1, 1)).astype(np.float32)
    w2[:, 5] /= 40.0
    far = np.full(8, OFFSET, np.float32)
    return build(PLANTED, w1=w1, w2=w2, w3=(8, 8, 1, 1), far=far, w4=(6, 8))


def samples(count=6):
    shape = (count, 4, 8, 8)
    return {"x": np.random.default_rng(4).standard_normal(shape).astype(np.float32)}


def test_the_widest_tensor_comes_first_and_its_cure_is_told(look, planted, run_model):
    found = look(planted, samples(), calib_samples=6).observed
    first = found.spreads[0]
    assert (first.tensor, first.channels, first.region) == ("wide", 16, 0)
    assert first.before > 10.0 > first.after  # one channel is 40 times the others
    assert first.cure in {"scale", "both"}
    planted.graph.output.append(onnx.ValueInfoProto(name="wide"))
    wide = np.concatenate([run_model(planted, {"x": x[None]})[1] for x in samples()["x"]])
    ranges = np.ptp(wide, axis=(0, 2, 3))
    assert first.before == pytest.approx(ranges.max() / np.median(ranges), rel=1e-5)
    assert [item.before for item in found.spreads] == sorted(
        (item.before for item in found.spreads), reverse=True
    )


def test_one_sided_tensors_are_told_with_their_cure(look, planted):
    found = look(planted, samples(), calib_samples=6).observed
    sided = {item.tensor: item for item in found.one_sided}
    assert sided["high"].low > 0.0
    assert sided["high"].cure in {"shift", "cover", "symmetric"}
    assert "wide" not in sided
    assert all(item.low > 0.0 or item.high < 0.0 for item in found.one_sided)


def test_spread_is_the_widest_range_over_the_median():
    observer = Observer(1)
    ranges = np.array([1.0, 2.0, 4.0, 12.0, 0.0], np.float32)  # the last channel never changes
    observer.add(np.stack([-ranges, np.zeros_like(ranges)])[:, :, None])
    assert spread(observer.stats()) == pytest.approx(12.0 / 3.0)
    constant = Observer(1)
    constant.add(np.ones((1, 3, 4), np.float32))
    assert spread(constant.stats()) == 1.0


@pytest.mark.parametrize(
    ("low", "high", "fraction"), [(1.0, 4.0, 0.25), (-8.0, -2.0, 0.25), (3.0, 3.0, 1.0)]
)
def test_levels_lost_to_a_range_without_zero(low, high, fraction):
    assert lost(low, high) == pytest.approx(fraction)


def test_what_was_not_watched_along_channels_is_counted(look):
    x = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    for family in ("MobileViT", "Mobile-Former"):
        seen = look(FAMILIES[family](), {"x": x}).observed
        assert len(seen.spreads) + seen.unwatched > 10
        assert all(item.before >= 1.0 and item.after >= 1.0 for item in seen.spreads)


def test_only_as_many_samples_as_asked_are_taken(look, planted):
    found = look(planted, samples(6), calib_samples=2)
    assert found.observed.samples == 2
    assert [item.name for item in found.passes][-1] == "search-scales"


def test_nothing_is_written(look, planted, tmp_path):
    look(planted, samples(), calib_samples=2)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_data_and_shapes_that_do_not_fit_are_refused(look, planted):
    with pytest.raises(DataError):
        look(planted, {"x": np.zeros((2, 4, 7, 7), np.float32)})
    with pytest.raises(ConfigError, match="contradicts"):
        look(planted, input_shapes={"x": (1, 4, 9, 9)})


QUANTIZED = """
net (float[1, 4] x) => (float[1, 4] y) {
  q = QuantizeLinear (x, s, z)
  y = DequantizeLinear (q, s, z)
}
"""


def test_a_quantized_model_is_looked_at_but_not_with_data(look, build):
    model = build(QUANTIZED, s=np.float32(0.1), z=np.uint8(128))
    found = look(model)
    assert found.quantized
    assert found.families == {"quantization": {"QuantizeLinear": 1, "DequantizeLinear": 1}}
    assert found.regions == found.units == ()
    with pytest.raises(ModelError, match="quantized already"):
        look(model, {"x": np.zeros((2, 4), np.float32)})
