# SPDX-License-Identifier: Apache-2.0
"""Calibrate watches what the kernels read and write, streaming, and changes nothing."""

from itertools import islice

import numpy as np
import pytest

from qhyvit_onnx.config import CompileConfig, Extent
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.errors import DataError, ModelError
from qhyvit_onnx.facts import STATS
from qhyvit_onnx.passes.calibrate import Calibrate
from qhyvit_onnx.state import State

CONVS = """
g (float[N, 8, 6, 6] x) => (float[N, 4, 4, 4] y) {
    c = Conv (x, w)
    a = Relu (c)
    s = Sigmoid (a)
    m = Mul (a, s)
    y = Conv (m, p)
}
"""
CONV_WEIGHTS = {"w": (8, 8, 3, 3), "p": (4, 8, 1, 1)}
ATTENTION = """
g (float[1, 6, 8] t) => (float[1, 6, 8] y) {
    q = MatMul (t, wq)
    k = MatMul (t, wk)
    v = MatMul (t, wv)
    kt = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul (q, kt)
    p = Softmax (s)
    o = MatMul (p, v)
    y = MatMul (o, wo)
}
"""
ATTENTION_WEIGHTS = dict.fromkeys(("wq", "wk", "wv", "wo"), (8, 8))


def samples(count=5, shape=(2, 8, 6, 6), name="x"):
    rng = np.random.default_rng(11)
    return [{name: (i + 1) * rng.standard_normal(shape).astype(np.float32)} for i in range(count)]


def watched(model, feeds, **settings):
    """Return the statistics, the state, and what the pass said."""
    feeds = feeds if isinstance(feeds, Feeds) else Feeds.of(feeds)
    state = State(model, CompileConfig(**settings), feeds)
    outcome = Calibrate().run(state)
    return state.get(STATS), state, outcome


def values_of(build, run_model, text, weights, name, shape):
    """Return a tensor of a model for every sample, computed by onnxruntime."""
    head, _, body = text.partition("=>")
    output = f"=> (float[{', '.join('abcdefgh'[: len(shape)])}] {name})"
    model = build(head + output + body[body.index("{") - 1 :], **weights)
    return lambda feeds: np.stack([run_model(model, feed)[0] for feed in feeds])


def test_ranges_equal_those_of_the_float_model(build, run_model):
    stats, _, outcome = watched(build(CONVS, **CONV_WEIGHTS), samples())
    values = values_of(build, run_model, CONVS, CONV_WEIGHTS, "m", "abcd")(samples())
    seen = stats["m"]
    # the same kernels on the same numbers; a fused SiLU may differ in the last places
    assert seen.low == pytest.approx(values.min(), rel=1e-5, abs=1e-6)
    assert seen.high == pytest.approx(values.max(), rel=1e-5)
    assert seen.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-4)
    assert seen.std == pytest.approx(values.std(dtype=np.float64), rel=1e-4)
    assert seen.counts.sum() + seen.zeros == values.size
    assert outcome.note.startswith("5 samples, ")


@pytest.mark.parametrize("name", ["x", "a", "m"])
def test_channels_of_a_map_are_its_second_axis(build, run_model, name):
    # m is written by a SiLU, not by a convolution, and is a map all the same
    stats, _, _ = watched(build(CONVS, **CONV_WEIGHTS), samples())
    if name == "x":
        values = np.stack([feed["x"] for feed in samples()])
    else:
        values = values_of(build, run_model, CONVS, CONV_WEIGHTS, name, "abcd")(samples())
    per_channel = np.moveaxis(values, 2, 0).reshape(8, -1)
    np.testing.assert_allclose(stats[name].channel_high, per_channel.max(axis=1), rtol=1e-5)
    square = np.square(per_channel.astype(np.float64)).mean(axis=1)
    np.testing.assert_allclose(stats[name].channel_square, square, rtol=1e-4)


def test_every_border_of_a_unit_is_watched(build):
    stats, _, _ = watched(build(CONVS, **CONV_WEIGHTS), samples())
    assert set(stats) == {"x", "a", "s", "m", "y"}  # c and nothing else is inside a kernel
    assert stats["x"].channel_low.shape == (8,)
    assert stats["y"].channel_low.shape == (4,)
    assert (stats["a"].low, stats["a"].one_sided) == (0.0, False)


def test_tokens_have_their_channels_last(build):
    stats, _, _ = watched(build(ATTENTION, **ATTENTION_WEIGHTS), samples(shape=(1, 6, 8), name="t"))
    assert {"t", "q", "k", "v", "o"} <= set(stats)
    assert stats["q"].channel_low.shape == (8,)
    assert "p" not in stats  # attention is large and its grid is fixed
    assert "s" not in stats  # written as floats, read by a float softmax


def test_what_an_integer_softmax_reads_is_watched(build):
    feeds = samples(shape=(1, 6, 8), name="t")
    model = build(ATTENTION, **ATTENTION_WEIGHTS)
    stats, _, _ = watched(model, feeds, placement=Extent.FULL)
    assert "s" in stats
    assert "p" not in stats


def test_a_tensor_behind_movement_is_watched_at_its_source(build):
    model = build(
        """
        g (float[1, 8, 4, 4] x) => (float[1, 3] y) {
            c = Conv (x, w)
            f = Flatten (c)
            y = Gemm (f, v)
        }""",
        w=(8, 8, 3, 3), v=(32, 3),
    )  # fmt: skip
    stats, _, _ = watched(model, samples(shape=(1, 8, 4, 4)))
    assert stats["c"].channel_low.shape == (8,)
    assert stats["f"].low == stats["c"].low


def test_nothing_in_the_graph_changes(build):
    model = build(CONVS, **CONV_WEIGHTS)
    before = model.SerializeToString(deterministic=True)
    _, state, outcome = watched(model, samples())
    untouched = State(model, CompileConfig(), ())
    assert outcome.changed == 0
    assert state.model() == untouched.model()
    assert model.SerializeToString(deterministic=True) == before


def test_two_runs_learn_the_same(build):
    model = build(CONVS, **CONV_WEIGHTS)
    first, second = (watched(model, samples())[0] for _ in range(2))
    assert first.keys() == second.keys()
    for name, seen in first.items():
        assert (seen.low, seen.high, seen.mean) == (
            second[name].low, second[name].high, second[name].mean,
        )  # fmt: skip
        np.testing.assert_array_equal(seen.counts, second[name].counts)


def test_samples_are_streamed(build):
    alive = []

    def walk():
        for feed in samples(6):
            alive.append(feed["x"])
            yield feed
            alive.pop()

    high_water = []

    def tick(done, total):
        high_water.append((done, total, len(alive)))

    state = State(build(CONVS, **CONV_WEIGHTS), CompileConfig(), Feeds(walk, 6), tick=tick)
    Calibrate().run(state)
    assert high_water == [(i, 6, 1) for i in range(1, 7)]


def test_no_samples(build):
    with pytest.raises(DataError, match="holds no samples"):
        watched(build(CONVS, **CONV_WEIGHTS), [])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_names_tensor_and_sample(build, bad):
    feeds = samples(3)
    feeds[2]["x"][0, 1, 2, 3] = bad
    with pytest.raises(ModelError, match=r"tensor 'x' holds NaN or infinity on .* sample 2"):
        watched(build(CONVS, **CONV_WEIGHTS), feeds)


def test_infinity_made_by_the_model_is_found(build):
    model = build(
        "g (float[N, 8, 6, 6] x) => (float[N, 8, 4, 4] y) { d = Div (x, x) y = Conv (d, w) }",
        w=(8, 8, 3, 3),
    )
    with pytest.raises(ModelError, match="tensor 'd' holds NaN"):
        watched(model, [{"x": np.zeros((1, 8, 6, 6), np.float32)}])


def test_samples_of_different_sizes(build):
    model = build(CONVS.replace("6, 6", "H, W").replace("4, 4, 4]", "4, A, B]"), **CONV_WEIGHTS)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 8, n, n)).astype(np.float32)} for n in (6, 9, 7)]
    stats, _, _ = watched(model, feeds)
    assert stats["x"].channel_low.shape == (8,)
    assert stats["x"].high == max(f["x"].max() for f in feeds)
    assert stats["x"].shape == (1, 8, 7, 7)


def test_a_graph_without_units_has_no_statistics(build):
    model = build("g (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) { y = Exp (x) }")
    stats, _, outcome = watched(model, samples(1))
    assert stats == {}
    assert outcome.note == "1 samples, 0 tensors watched, 0 of them one-sided"


def test_integers_that_are_added_do_not_matter(build):
    # shape arithmetic that is left at run time has Add and Concat of whole numbers
    model = build(
        """
        g (float[N, 8, H, W] x, int64[2] size) => (float[a, b, c, d] y) {
            c = Conv (x, w)
            n = Shape <start = 0, end = 2> (c)
            twice = Add (size, size)
            shape = Concat <axis = 0> (n, twice)
            y = Reshape (c, shape)
        }""",
        w=(8, 8, 3, 3),
    )
    feed = {"x": np.ones((1, 8, 6, 6), np.float32), "size": np.int64([2, 2])}
    stats, _, _ = watched(model, [feed])
    assert {"x", "c"} <= set(stats)


def test_an_empty_tensor_is_no_error(build):
    model = build(
        """
        g (float[N, 8] x, float[M, 8] more) => (float[K, 8] y) {
            both = Concat <axis = 0> (x, more)
            y = Gemm (both, w)
        }""",
        w=(8, 8),
    )
    rng = np.random.default_rng(0)
    feeds = [
        {"x": rng.standard_normal((2, 8)).astype(np.float32), "more": np.zeros((0, 8), np.float32)}
    ]
    stats, _, _ = watched(model, feeds)
    assert stats["both"].high == feeds[0]["x"].max()


def test_a_tensor_only_a_branch_reads(build):
    model = build(
        """
        g (float[1, 8, 6, 6] x, bool flag) => (float[1, 8, 4, 4] y) {
            c = Conv (x, w)
            y = If (flag) <
                then_branch = yes () => (float[1, 8, 4, 4] a) { a = Relu (c) },
                else_branch = no () => (float[1, 8, 4, 4] b) { b = Identity (other) }
            >
        }""",
        w=(8, 8, 3, 3), other=(1, 8, 4, 4),
    )  # fmt: skip
    feeds = [{**feed, "flag": np.array(i % 2 == 0)} for i, feed in
             enumerate(samples(2, (1, 8, 6, 6)))]  # fmt: skip
    assert set(watched(model, feeds)[0]) == {"x", "c"}


def test_progress_is_told_for_what_was_given(build):
    heard = []
    feeds = Feeds(lambda: islice(iter(samples(8)), 3), 3)
    state = State(build(CONVS, **CONV_WEIGHTS), CompileConfig(), feeds)
    state.tick = lambda done, total: heard.append((done, total))
    Calibrate().run(state)
    assert heard == [(1, 3), (2, 3), (3, 3)]
