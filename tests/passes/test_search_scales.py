# SPDX-License-Identifier: Apache-2.0
"""SearchScales gives every tensor a legal grid, every weight a scale, and changes nothing."""

import signal

import numpy as np
import pytest

from qhyvit_onnx.config import CompileConfig, Folding, Scope
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.errors import PassError
from qhyvit_onnx.facts import BRIDGES, EVIDENCE, RANGES, SEARCHED
from qhyvit_onnx.grid import Cure, Grid, grid_for
from qhyvit_onnx.kernels.evidence import Evidence, ProductEvidence
from qhyvit_onnx.passes._matrices import BIAS_STEPS
from qhyvit_onnx.passes._searching.products import attention_grids
from qhyvit_onnx.passes.calibrate import Calibrate
from qhyvit_onnx.passes.fold_ranges import FoldRanges
from qhyvit_onnx.passes.search_scales import SearchScales
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import find_target
from qhyvit_onnx.units import find_units

ARM, VNNI, AVX2 = (find_target(n, frozenset()) for n in ("arm64", "x64-vnni", "x64-avx2"))

CONV = "g (float[N, 8, 6, 6] x) => (float[N, 8, 4, 4] y) { y = Conv (x, w, b) }"
RELU6 = """
g (float[N, 8, 6, 6] x) => (float[N, 8, 4, 4] y) {
    c = Conv (x, w, b)
    y = Clip (c, zero, six)
}
"""
BOUNDS = {"zero": np.float32(0), "six": np.float32(6)}


def samples(count=4, shape=(1, 8, 6, 6), scale=1.0, shift=0.0):
    rng = np.random.default_rng(3)
    return [
        {"x": (scale * rng.standard_normal(shape) + shift).astype(np.float32)} for _ in range(count)
    ]


@pytest.fixture
def searched(build):
    """Return a function: (text, weights, samples, target) -> (grids, outcome, state)."""

    def run(text, weights, feeds, target=ARM):
        held = State(build(text, **weights), CompileConfig(), Feeds.of(feeds))
        Calibrate().run(held)
        FoldRanges(Folding(scope=Scope.OFF)).run(held)
        held.put(BRIDGES, ())
        held.put(EVIDENCE, Evidence())  # as with effort fast
        outcome = SearchScales(target).run(held)
        return held.get(SEARCHED), outcome, held

    return run


@pytest.fixture
def within():
    """Return a function that turns an endless loop into a failure: seconds -> None."""

    def stop(*_):
        raise TimeoutError("the search does not end")

    before = signal.signal(signal.SIGALRM, stop)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_every_tensor_and_weight_has_a_grid(searched):
    grids, outcome, _ = searched(CONV, {"w": (8, 8, 3, 3), "b": (8,)}, samples())
    assert set(grids.activations) == {"x", "y"}
    (weight,) = grids.weights.values()
    assert (weight.axis, weight.limit, weight.scale.shape) == (0, 127, (8,))
    assert outcome.note == "2 activation grids (0 cured), 1 weights"


def test_the_rounded_layer_is_close_to_float(searched, build, run_model):
    weights = {"w": (8, 8, 3, 3), "b": (8,)}
    grids, _, held = searched(CONV, weights, samples())
    (weight,) = grids.weights.values()
    kept = {t.name: np.asarray(t.values) for t in held.graph.nodes[0].inputs[1:]}
    rounded = build(CONV, w=weight.fake(kept["w"]), b=kept["b"])
    signal_energy = noise = 0.0
    for feed in samples():
        want = run_model(build(CONV, **weights), feed)[0]
        got = run_model(rounded, {"x": grids.activations["x"].fake(feed["x"])})[0]
        got = grids.activations["y"].fake(got)
        signal_energy += np.square(want).sum()
        noise += np.square(want - got).sum()
    # three roundings to 8 bits of normal numbers: about 4 sigma a side in 255 steps is 40 dB each
    assert 10 * np.log10(signal_energy / noise) > 33


def test_nothing_in_the_graph_changes(searched, build):
    weights = {"w": (8, 8, 3, 3), "b": (8,)}
    _, outcome, held = searched(CONV, weights, samples())
    assert outcome.changed == 0
    assert held.model() == State(build(CONV, **weights), CompileConfig(), ()).model()


def test_two_runs_find_the_same(searched):
    weights = {"w": (8, 8, 3, 3), "b": (8,)}
    first, second = (searched(CONV, weights, samples())[0] for _ in range(2))
    assert first.activations == second.activations
    for name, grid in first.weights.items():
        np.testing.assert_array_equal(grid.scale, second.weights[name].scale)


@pytest.mark.parametrize(
    ("shift", "zero_point"), [(30.0, 0), (-30.0, 255)], ids=["positive", "negative"]
)
def test_a_one_sided_tensor_is_covered(searched, shift, zero_point):
    grids, outcome, _ = searched(
        CONV, {"w": (8, 8, 3, 3), "b": (8,)}, samples(scale=0.5, shift=shift)
    )
    grid = grids.activations["x"]
    assert (grid.cure, grid.zero_point) == (Cure.COVER, zero_point)
    assert "1 cured" in outcome.note or "2 cured" in outcome.note
    x = samples(scale=0.5, shift=shift)[0]["x"]
    assert np.abs(grid.fake(x) - x).max() < 3.0


@pytest.mark.parametrize("number", [0.0, 1.0, 2.5, -2.5])
def test_a_constant_tensor_is_exact(searched, number):
    feeds = [{"x": np.full((1, 8, 6, 6), number, np.float32)}]
    grids, _, _ = searched(CONV, {"w": (8, 8, 3, 3), "b": (8,)}, feeds)
    assert grids.activations["x"].fake(feeds[0]["x"])[0, 0, 0, 0] == np.float32(number)
    assert grids.activations["x"].cure is Cure.CONSTANT


def read_by(body):
    return f"g (float[N, 8, 6, 6] x) => (float[N, 8, 4, 4] y) {{ c = Conv (x, w, b) {body} }}"


WIDE = {"w": (8, 8, 3, 3), "b": (8,)}  # sums of 72 products: far into the flat part


@pytest.mark.parametrize(
    ("body", "lowest"),
    [
        ("h = HardSwish (c) y = Relu (h)", -3.1),
        ("s = Sigmoid (c) y = Mul (c, s)", -9.0),
        ("d = Div (c, root) e = Erf (d) f = Add (e, one) m = Mul (c, f) y = Mul (m, half)", -4.0),
    ],
    ids=["HardSwish", "SiLU", "GELU"],
)
def test_no_code_is_spent_where_the_only_reader_is_flat(searched, body, lowest):
    numbers = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    weights = WIDE | {name: number for name, number in numbers.items() if f"{name})" in body}
    grids, _, held = searched(read_by(body), weights, samples())
    assert held.get(RANGES)["c"].low < 1.5 * lowest
    assert lowest < grids.activations["c"].low < 0


@pytest.mark.parametrize(
    "body",
    [
        "h = HardSwish (c) y = Add (h, c)",
        "h = HardSwish (c) r = Relu (c) y = Add (h, r)",
        "y = Sin (c)",
    ],
    ids=["another reader", "two functions", "no flat part"],
)
def test_another_reader_needs_the_whole_range(searched, body):
    grids, _, held = searched(read_by(body), WIDE, samples())
    assert grids.activations["c"].low < 0.5 * held.get(RANGES)["c"].low < -5.0


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_no_code_of_a_clipped_tensor_lies_above_the_clip(searched, scale):
    grids, _, _ = searched(RELU6, {"w": (8, 8, 3, 3), "b": (8,), **BOUNDS}, samples(scale=scale))
    grid = grids.activations["y"]
    assert grid.zero_point == 0
    # as float32, in which onnxruntime compares
    assert np.float32(grid.scale) * np.float32(255) <= np.float32(6)


def test_a_clip_far_below_the_range_of_the_grid(searched, within):
    # every position is saturated at 6: the grid of the constant 6 is far wider than the clip
    weights = {"w": np.zeros((8, 8, 3, 3), np.float32), "b": np.full(8, 9, np.float32), **BOUNDS}
    within(5)
    grids, _, _ = searched(RELU6, weights, samples(1))
    within(0)
    grid = grids.activations["y"]
    assert np.float32(grid.scale) * np.float32(255) <= np.float32(6)
    # within half a step of the constant, as the narrower grid allows
    assert abs(float(grid.fake(np.array([6], np.float32))[0]) - 6) <= grid.scale / 2


def test_a_relu_starts_at_code_zero(searched):
    text = RELU6.replace("Clip (c, zero, six)", "Relu (c)")
    grids, _, _ = searched(text, {"w": (8, 8, 3, 3), "b": (8,)}, samples())
    assert grids.activations["y"].zero_point == 0


def test_movement_shares_the_grid_of_its_source(searched):
    text = """
    g (float[1, 8, 6, 6] x) => (float[1, 3] y) {
        c = Conv (x, w)
        r = Relu (c)
        m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
        f = Flatten (m)
        y = Gemm (f, v)
    }"""
    grids, _, _ = searched(text, {"w": (8, 8, 3, 3), "v": (32, 3)}, samples())
    assert grids.activations["f"] == grids.activations["r"]


def test_movement_shares_the_grid_of_a_clipped_source(searched):
    text = """
    g (float[1, 8, 6, 6] x) => (float[1, 3] y) {
        c = Conv (x, w)
        r = Clip (c, zero, six)
        f = Flatten (r)
        y = Gemm (f, v)
    }"""
    weights = {"w": (8, 8, 3, 3), "v": (128, 3), **BOUNDS}
    grids, _, _ = searched(text, weights, samples(scale=10.0))
    assert grids.activations["f"] == grids.activations["r"]


def test_a_softmax_has_the_grid_of_its_kernel(searched):
    text = """
    g (float[1, 6, 8] x) => (float[1, 6, 8] y) {
        p = Softmax (x)
        r = Reshape (p, shape)
        y = MatMul (r, x)
    }"""
    feeds = samples(shape=(1, 6, 8))
    text = text.replace("MatMul (r, x)", "Mul (r, x)")
    grids, _, _ = searched(text, {"shape": np.int64([1, 6, 8])}, feeds)
    assert grids.activations["p"] == grids.activations["r"] == Grid(1 / 256, 0)


@pytest.mark.parametrize(
    ("body", "shape", "axis", "count"),
    [
        ("y = Gemm (x, v)", (8, 5), 1, 5),
        ("y = Gemm <transB = 1> (x, v)", (5, 8), 0, 5),
        ("y = MatMul (x, v)", (8, 5), 1, 5),
    ],
)
def test_scales_lie_along_the_output_channels(searched, body, shape, axis, count):
    text = f"g (float[3, 8] x) => (float[3, 5] y) {{ {body} }}"
    grids, _, held = searched(text, {"v": shape}, samples(shape=(3, 8)))
    (grid,) = grids.weights.values()
    assert (grid.axis, grid.scale.shape) == (axis, (count,))
    weight = np.asarray(held.graph.nodes[0].inputs[1].values)
    peaks = np.abs(weight).max(axis=1 - axis) / 127
    # the search keeps at least 0.7 of the peak
    assert (grid.scale <= peaks * 1.0001).all()
    assert (grid.scale >= peaks * 0.6999).all()


def test_a_batch_of_weights_has_one_scale(searched):
    text = "g (float[2, 3, 8] x) => (float[2, 3, 5] y) { y = MatMul (x, v) }"
    grids, _, _ = searched(text, {"v": (2, 8, 5)}, samples(shape=(2, 3, 8)))
    (grid,) = grids.weights.values()
    assert grid.per_tensor


@pytest.mark.parametrize("target", [ARM, VNNI, AVX2], ids=lambda t: t.name)
@pytest.mark.parametrize("kind", ["conv", "gemm", "matmul"])
def test_pairs_saturate_only_where_the_kernel_can_take_it(searched, target, kind):
    text, weight, shape = {
        "conv": (CONV, (8, 8, 3, 3), (1, 8, 6, 6)),
        "gemm": ("g (float[3, 72] x) => (float[3, 8] y) { y = Gemm (x, w, b) }", (72, 8), (3, 72)),
        "matmul": ("g (float[3, 72] x) => (float[3, 8] y) { y = MatMul (x, w) }", (72, 8), (3, 72)),
    }[kind]
    # equal weights: pairs of 127 and 127 without a limit
    value = np.full(weight, 0.5, np.float32)
    weights = {"w": value} if kind == "matmul" else {"w": value, "b": (8,)}
    grids, _, held = searched(text, weights, samples(shape=shape), target)
    (grid,) = grids.weights.values()
    codes = grid.codes(np.asarray(held.graph.nodes[0].inputs[1].values))
    assert (2 * int(codes.max()) <= 128) is bool(target.pair_limit)


def test_depthwise_weights_keep_all_codes_on_avx2(searched):
    text = "g (float[1, 8, 6, 6] x) => (float[1, 8, 4, 4] y) { y = Conv <group = 8> (x, w) }"
    grids, _, _ = searched(text, {"w": np.full((8, 1, 3, 3), 0.5, np.float32)}, samples(), AVX2)
    (grid,) = grids.weights.values()
    assert grid.codes(np.full((8, 1, 3, 3), 0.5, np.float32)).max() == 127


def test_depthwise_channels_do_not_weigh_positions(searched):
    # nine channels and nine positions: the energy of channel 5 says nothing about position 5
    text = "g (float[1, 9, 6, 6] x) => (float[1, 9, 4, 4] y) { y = Conv <group = 9> (x, w) }"
    weight = np.random.default_rng(0).standard_t(2, (9, 1, 3, 3)).astype(np.float32)
    even = samples(shape=(1, 9, 6, 6))
    uneven = [{"x": feed["x"] * np.logspace(-2, 2, 9, dtype=np.float32)[:, None, None]}
              for feed in even]  # fmt: skip
    first, second = (searched(text, {"w": weight}, feeds)[0].weights for feeds in (even, uneven))
    for name, grid in first.items():
        np.testing.assert_allclose(grid.scale, second[name].scale, rtol=1e-6)


def test_pairs_of_a_conv_are_neighbouring_channels(searched):
    # NHWC kernels sum over position, then channel: (c, c + 1) at one position are a pair
    weight = np.zeros((8, 8, 3, 3), np.float32)
    weight[:, 0, 0, 0] = weight[:, 0, 0, 1] = 1.0  # one channel at two positions: never a pair
    weights = {"w": weight, "b": (8,)}
    grids, _, _ = searched(CONV, weights, samples(), AVX2)
    (grid,) = grids.weights.values()
    assert grid.codes(weight).max() == 127


@pytest.mark.parametrize("tiny", [1e-3, 1e-9])
def test_a_large_bias_fits_int32(searched, tiny):
    bias = np.full(8, 1e4, np.float32)
    weight = (tiny * np.random.default_rng(0).standard_normal((8, 8, 3, 3))).astype(np.float32)
    grids, _, _ = searched(CONV, {"w": weight, "b": bias}, samples(scale=tiny))
    (grid,) = grids.weights.values()
    step = np.float32(grids.activations["x"].scale) * grid.scale
    assert (np.abs(bias / step) <= BIAS_STEPS * 1.001).all()


def test_a_channel_of_zeros_represents_its_bias(searched):
    weight = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)
    weight[3] = 0
    bias = np.zeros(8, np.float32)
    bias[3] = 1234.5
    grids, _, _ = searched(CONV, {"w": weight, "b": bias}, samples())
    (grid,) = grids.weights.values()
    step = np.float32(grids.activations["x"].scale) * grid.scale[3]
    assert abs(np.rint(bias[3] / step) * step - bias[3]) < 1e-3 * bias[3]
    assert abs(bias[3] / step) < 2**31


def test_a_layer_of_zeros_has_a_scale(searched):
    grids, _, _ = searched(
        CONV, {"w": np.zeros((8, 8, 3, 3), np.float32), "b": np.zeros(8, np.float32)}, samples()
    )
    (grid,) = grids.weights.values()
    assert (grid.scale > 0).all()


def test_without_statistics_it_is_a_bug(build, state):
    held = state(build(CONV, w=(8, 8, 3, 3), b=(8,)))
    held.put(EVIDENCE, Evidence())
    with pytest.raises(PassError, match="'ranges' was not given"):
        SearchScales(ARM).run(held)


def test_no_outlier_rules_the_range(searched):
    feeds = samples(8, shape=(1, 8, 20, 20))
    feeds[3]["x"][0, 0, 0, 0] = 8.0  # 6 sigma beside 25600 positions
    text = CONV.replace("6, 6", "20, 20").replace("4, 4", "18, 18")
    grids, _, _ = searched(text, {"w": (8, 8, 3, 3), "b": (8,)}, feeds)
    x = np.concatenate([feed["x"] for feed in feeds])

    def noise(grid: Grid):
        return float(np.square(grid.fake(x) - x).mean(dtype=np.float64))

    assert noise(grids.activations["x"]) < noise(grid_for(float(x.min()), float(x.max())))


ATTENTION = """
g (float[1, 6, 8] x) => (float[1, 6, 8] y) {
    [soft] p = Softmax (x)
    t = Transpose <perm = [0, 1, 2]> (p)
    [first] y = MatMul (t, v)
}
"""


def product_evidence(seed=0):
    rng = np.random.default_rng(seed)
    left = rng.uniform(0, 0.2, (4, 6, 8)).astype(np.float32)
    right = rng.standard_normal((4, 8, 8)).astype(np.float32)
    return ProductEvidence(left, right, np.ones((4, 6, 8), np.float32), np.zeros(4, np.int64))


def maps(build, text, names=("first",)):
    """Return the grids that a search gives the attention maps of a net, by source."""
    graph = State(build(text), CompileConfig(), ()).graph
    grids = {"p": Grid(1 / 256, 0), "v": Grid(0.02, 128), "x": Grid(0.02, 128)}
    evidence = Evidence(products={name: product_evidence() for name in names})
    return attention_grids(find_units(graph), grids, evidence, 100)


TWO_INPUTS = ATTENTION.replace("x)", "x, float[1, 8, 8] v)", 1)


def test_an_attention_map_has_a_grid_as_wide_as_it_needs(build):
    found = maps(build, TWO_INPUTS)
    assert set(found) == {"p"}
    assert (found["p"].zero_point, found["p"].bits) == (0, 8)
    assert 0.1 < found["p"].high < 0.21  # of values that are spread evenly up to 0.2


@pytest.mark.parametrize(
    "more",
    ["[second] z = MatMul (p, v)", "[second] z = Mul (p, x)", "[second] z = MatMul (v, p)"],
)
def test_a_map_that_others_read_keeps_its_grid(build, more):
    text = TWO_INPUTS.replace("y)", "y, float[a, b, c] z)").replace("\n}", f"\n    {more}\n}}")
    assert maps(build, text, ("first", "second")) == {}


def test_a_map_without_evidence_keeps_its_grid(build):
    assert maps(build, TWO_INPUTS, ()) == {}


def test_an_average_is_as_coarse_as_its_kernel_needs(searched):
    text = """
    g (float[1, 8, 6, 6] x) => (float[1, 8, 1, 1] y) {
        c = Conv (x, w) n = InstanceNormalization (c, one, none)
        p = GlobalAveragePool (n) y = Conv (p, v)
    }"""
    weights = {"w": (8, 8, 1, 1), "v": (8, 8, 1, 1), "one": np.ones(8, np.float32),
               "none": np.zeros(8, np.float32)}  # fmt: skip
    grids, _, _ = searched(text, weights, samples())
    read, written = (grids.activations[name] for name in "np")
    # the average of 36 codes has steps of scale / 36: the kernel takes 256 a step at most
    assert read.scale / (36 * written.scale) == pytest.approx(128, rel=1e-6)
