# SPDX-License-Identifier: Apache-2.0
"""Gradients, gains and grams: against finite differences, closed forms and explicit patches."""

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="gradients are torch's, torch an extra")

from qhyvit_onnx.kernels import takers  # noqa: E402
from qhyvit_onnx.kernels.executor import Executor  # noqa: E402
from qhyvit_onnx.kernels.fisher import gather  # noqa: E402
from qhyvit_onnx.kernels.losses import Draw, ends_of, slope  # noqa: E402
from qhyvit_onnx.kernels.probes import (  # noqa: E402
    LayerProbe,
    Probes,
    ProductProbe,
    Stack,
    Window,
)
from qhyvit_onnx.programs import opaque_runner, program_of  # noqa: E402

NET = (
    "g (float[N, 4] x) => (float[N, 3] y) "
    "{ a = MatMul (x, v) b = Tanh (a) c = MatMul (b, w) y = Softmax (c) }"
)
SHAPES = {"v": (4, 5), "w": (5, 3)}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gathered(model, feeds, probes, seed=0):
    program = program_of(model)
    executor = Executor(program, opaque=opaque_runner(program))
    return gather(
        executor, feeds, probes, samples=len(feeds), seed=seed, tick=lambda done, total: None
    )


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# What is drawn


def test_gains_are_squares_of_finite_differences(build):
    """One sample, one drawn class: the only freedom is which of the three classes it was."""
    model, x = build(NET, **SHAPES), normal(1, 4).astype(np.float64)
    v, w = (onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer)
    evidence = gathered(model, [{"x": x.astype(np.float32)}], Probes(tensors={"x": -1, "b": -1}))

    def slopes(loss, at, step=1e-5):
        moves = np.eye(at.shape[1]) * step
        return np.array([(loss(at + move) - loss(at - move)) / (2 * step) for move in moves])

    def of_x(z, label):
        return -np.log(softmax(np.tanh(z @ v) @ w)[0, label])

    def of_b(z, label):
        return -np.log(softmax(z @ w)[0, label])

    found = evidence.tensors["x"].gains[0], evidence.tensors["b"].gains[0]
    for label in range(3):
        wanted = (
            slopes(lambda z, label=label: of_x(z, label), x) ** 2,
            slopes(lambda z, label=label: of_b(z, label), np.tanh(x @ v)) ** 2,
        )
        # float32 against float64, three layers deep
        if np.allclose(found[0], wanted[0], rtol=1e-4):
            np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4)
            return
    pytest.fail("the gains are those of no class")


def test_fisher_of_a_softmax_is_its_closed_form(build):
    """E[(p - onehot)^2] = p (1 - p)."""
    model = build("g (float[N, 3] x) => (float[N, 3] y) { c = Add (x, w) y = Softmax (c) }", w=(3,))
    x = normal(3)
    p = softmax(x + onnx.numpy_helper.to_array(model.graph.initializer[0]))
    draws = 16384
    evidence = gathered(model, [{"x": np.tile(x, (draws // 4, 1))}] * 4, Probes(gains=("c",)))
    # a mean of draws in [0, 1]: standard deviation below 0.5 / sqrt(draws) = 0.004
    assert abs(evidence.gains["c"] - np.mean(p * (1 - p))) < 5 * 0.5 / np.sqrt(draws)


def test_every_class_is_drawn_as_often_as_it_is_likely(build):
    program = program_of(build(NET, **SHAPES))
    (end,) = ends_of(program).values()
    scores = torch.tensor([0.5, -1.0, 2.0]).expand(20000, 3)
    view, back = slope(end, scores, np.random.default_rng(0))
    assert view.shape == back.shape == scores.shape
    p = scores[0].softmax(0).numpy()
    drawn = (p - back.numpy()).mean(0)  # mean one-hot
    np.testing.assert_allclose(drawn, p, atol=5 * 0.5 / np.sqrt(20000))
    labels = (p - back.numpy()).round(4)
    assert set(np.unique(labels)) == {0.0, 1.0}


def test_the_distance_of_the_net_to_itself_weighs_nothing_and_ours_does(build):
    """What PTQ4ViT's code differentiates: KL(y, y) with the target cut off the graph."""
    model, x = build(NET, **SHAPES), normal(8, 4)
    program = program_of(model)
    seen = {}

    def keep(tensor):
        seen["b"] = tensor.detach().requires_grad_()
        return seen["b"]

    out = Executor(program).run({"x": x}, ["c"], hooks={"b": keep})["c"].log_softmax(-1)
    loss = torch.nn.functional.kl_div(out, out.detach(), log_target=True, reduction="batchmean")
    loss.backward()
    # p - p is zero but for the rounding of probabilities that sum to one: 1e-7, squared
    assert float(seen["b"].grad.square().max()) < 1e-13
    ours = gathered(model, [{"x": x}], Probes(tensors={"b": -1}))
    assert ours.tensors["b"].gains.mean() > 1e-3


def test_random_signs_give_the_jacobian(build):
    """For y = x W, with signs r: E[(W r)_k^2] = sum_n W_kn^2."""
    model = build("g (float[N, 2, 4] x) => (float[N, 2, 3] y) { y = MatMul (x, w) }", w=(4, 3))
    evidence = gathered(model, [{"x": normal(2000, 2, 4)}], Probes(tensors={"x": -1}))
    assert evidence.losses == {"y": Draw.SIGNS}
    w = onnx.numpy_helper.to_array(model.graph.initializer[0])
    found, want = evidence.tensors["x"].gains.mean(0), np.square(w).sum(1)
    # 4,000 draws; the variance of a squared sum of signs is at most twice the square of its mean
    np.testing.assert_allclose(found, want, rtol=5 * np.sqrt(2 / 4000))


ENDS = [
    ("y = Softmax (x)", (2, 5, 6), Draw.CLASS, "x"),
    ("y = Softmax <axis = 1> (x)", (2, 5, 6), Draw.CLASS, "x"),
    ("y = LogSoftmax (x)", (2, 6), Draw.CLASS, "x"),
    ("s = Softmax (x) y = Flatten (s)", (2, 5, 6), Draw.CLASS, "x"),
    ("y = Sigmoid (x)", (2, 6), Draw.YES_OR_NO, "x"),
    ("y = Neg (x)", (2, 6), Draw.CLASS, "y"),
    ("y = Neg (x)", (2, 1), Draw.SIGNS, "y"),
    ("y = Neg (x)", (2, 5, 6), Draw.SIGNS, "y"),
]


@pytest.mark.parametrize(("body", "shape", "draw", "at"), ENDS)
def test_the_loss_suits_the_output(build, body, shape, draw, at):
    program = program_of(build(f"g (float x) => (float y) {{ {body} }}"))
    (end,) = ends_of(program).values()
    assert (end.tensor, end.draw(torch.zeros(shape))) == (at, draw)
    view, back = slope(end, torch.zeros(shape), np.random.default_rng(0))
    assert view.shape == back.shape
    if draw is Draw.CLASS:
        axis = 1 if "axis" in body else -1
        assert view.shape[-1] == shape[axis]
        assert ((back < 0).sum(-1) == 1).all()  # one class a decision
    if draw is Draw.YES_OR_NO:
        assert set(back.unique().tolist()) == {-0.5, 0.5}


def test_softmax_before_opset_13_flattens(build):
    text = '<ir_version: 7, opset_import: ["": 11]> g (float x) => (float y) { y = Softmax (x) }'
    (end,) = ends_of(program_of(build(text))).values()
    view, _ = slope(end, torch.zeros(2, 5, 6), np.random.default_rng(0))
    assert view.shape == (2, 30)


def test_an_output_without_floats_has_no_loss(build):
    text = (
        "g (float[N, 4] x) => (int64[N, 1] i, float[N, 5] y) "
        "{ y = MatMul (x, v) i = ArgMax <axis = 1> (y) }"
    )
    probes = Probes(tensors={"x": -1})
    evidence = gathered(build(text, v=(4, 5)), [{"x": normal(1, 4)}], probes)
    assert evidence.losses == {"i": Draw.NONE, "y": Draw.CLASS}
    assert evidence.tensors["x"].gains.any()


# What layers read


def explicit(x, weight, window, groups):
    """Return the patches of every place, loop by loop: (places, groups, K)."""
    (n, c, *_), (kh, kw) = x.shape, weight.shape[2:]
    (sh, sw), (dh, dw), (top, left, bottom, right) = (
        window["strides"], window["dilations"], window["pads"],
    )  # fmt: skip
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
    columns = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    found = [
        padded[i, :, r * sh : r * sh + dh * kh : dh, q * sw : q * sw + dw * kw : dw]
        .reshape(groups, c // groups * kh * kw)
        for i in range(n) for r in range(rows) for q in range(columns)
    ]  # fmt: skip
    return np.stack(found)


CONVOLUTIONS = {
    "pointwise": ((6, 4, 1, 1), {"strides": (1, 1)}),
    "stride": ((6, 4, 3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
    "uneven": ((6, 4, 3, 2), {"strides": (1, 2), "pads": (0, 1, 2, 0)}),
    "dilation": ((6, 4, 3, 3), {"dilations": (2, 2), "pads": (2, 2, 2, 2)}),
    "groups": ((6, 2, 3, 3), {"group": 2, "pads": (1, 1, 1, 1)}),
    "depthwise": ((8, 1, 3, 3), {"group": 4, "pads": (1, 1, 1, 1)}),
}


def holds(evidence, patches, weight, outputs):
    """Hold evidence of all places to explicit patches, when the net ends in y = c * c.

    Its slope is 2 c r with random signs r, so every gain is 4 c^2.

    Shapes:
        patches (P, groups, K); weight (groups, C, K); outputs (P, groups * C).
    """
    found = np.einsum("pgk,gck->pgc", patches, weight)
    # the patches are right if they give what the layer gives
    np.testing.assert_allclose(found.reshape(outputs.shape), outputs, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(evidence.rows, patches)
    gains = 4 * outputs.astype(np.float64) ** 2
    np.testing.assert_allclose(evidence.gains, gains, rtol=1e-5)
    shared = gains.reshape(found.shape).mean(2)
    want = np.einsum("pg,pgk,pgl->gkl", shared, patches, patches) / len(patches)
    # float32 sums over places that partly cancel
    np.testing.assert_allclose(evidence.gram, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def outputs_of(model, feeds):
    executor = Executor(program_of(model))
    return [executor.run(feed, ["c"])["c"].numpy() for feed in feeds]


@pytest.mark.parametrize(("shape", "attrs"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_against_explicit_patches(build, shape, attrs):
    groups = attrs.get("group", 1)
    window = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0), **attrs}
    window.pop("group", None)
    given = ", ".join(f"{k} = {list(v) if isinstance(v, tuple) else v}" for k, v in attrs.items())
    model = build(
        f"g (float[N, 4, 6, 7] x) => (float y) {{ c = Conv <{given}> (x, w) y = Mul (c, c) }}",
        w=shape,
    )
    probe = LayerProbe("x", "c", Window(kernel=shape[2:], groups=groups, **window))
    feeds = [{"x": normal(2, 4, 6, 7, seed=seed)} for seed in range(2)]
    evidence = gathered(model, feeds, Probes(layers={"l": probe})).layers["l"]
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    patches = np.concatenate([explicit(f["x"], weight, window, groups) for f in feeds])
    outputs = [y.transpose(0, 2, 3, 1).reshape(-1, shape[0]) for y in outputs_of(model, feeds)]
    flat = weight.reshape(groups, shape[0] // groups, -1)
    holds(evidence, patches, flat, np.concatenate(outputs))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_pads_that_the_size_decides(build, auto_pad):
    model = build(
        "g (float[N, 4, 6, 7] x) => (float y) "
        f'{{ c = Conv <auto_pad = "{auto_pad}", strides = [2, 2]> (x, w) y = Mul (c, c) }}',
        w=(6, 4, 2, 3),
    )
    window = Window(
        kernel=(2, 3), strides=(2, 2), dilations=(1, 1), pads=(0,) * 4, auto_pad=auto_pad
    )
    probe = LayerProbe("x", "c", window)
    feeds = [{"x": normal(1, 4, 6, 7)}]
    evidence = gathered(model, feeds, Probes(layers={"l": probe})).layers["l"]
    flat = onnx.numpy_helper.to_array(model.graph.initializer[0]).reshape(1, 6, -1)
    holds(
        evidence,
        evidence.rows,
        flat,
        outputs_of(model, feeds)[0].transpose(0, 2, 3, 1)[0].reshape(-1, 6),
    )


PRODUCTS = {
    "gemm": ("c = Gemm (x, w)", (5, 4), (4, 3)),
    "gemm, weight transposed": ("c = Gemm <transB = 1> (x, w)", (5, 4), (3, 4)),
    "matmul": ("c = MatMul (x, w)", (2, 5, 4), (4, 3)),
    "stack": ("c = MatMul (x, w)", (2, 3, 5, 4), (3, 4, 6)),
    "stack read by one": ("c = MatMul (x, w)", (5, 4), (3, 1, 4, 6)),
}


@pytest.mark.parametrize(("body", "x", "w"), PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_with_a_constant(build, body, x, w):
    text = f"g (float x) => (float y) {{ {body} z = Mul (c, c) y = Unsqueeze (z, first) }}"
    model = build(text, w=w, first=np.array([0]))  # of two dims, y would be a decision
    feeds = [{"x": normal(*x, seed=seed)} for seed in range(2)]
    probe = LayerProbe("x", "c", Stack(w[:-2]))
    evidence = gathered(model, feeds, Probes(layers={"l": probe})).layers["l"]
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    if "transB" not in body:
        weight = np.swapaxes(weight, -1, -2)
    flat = weight.reshape(-1, *weight.shape[-2:])
    spread = [np.broadcast_to(f["x"], (*y.shape[:-1], x[-1])) for f, y in
              zip(feeds, outputs_of(model, feeds), strict=True)]  # fmt: skip

    def by_group(array):  # (..., stack, rows, width) -> (places, groups, width)
        if len(w) == 2:
            return array.reshape(-1, 1, array.shape[-1])
        if len(w) == 4:
            return array[:, 0].transpose(1, 0, 2)
        return array.transpose(0, 2, 1, 3).reshape(-1, 3, array.shape[-1])

    patches = np.concatenate([by_group(array) for array in spread])
    outputs = np.concatenate([by_group(y) for y in outputs_of(model, feeds)])
    holds(evidence, patches, flat, outputs.reshape(len(patches), -1))


def test_a_gram_of_drawn_places_is_close_to_that_of_all(build, monkeypatch):
    text = "g (float[N, 3, 40, 40] x) => (float y) { c = Conv (x, w) y = Mul (c, c) }"
    model = build(text, w=(4, 3, 3, 3))
    window = Window(kernel=(3, 3), strides=(1, 1), dilations=(1, 1), pads=(0,) * 4)
    probes = Probes(layers={"l": LayerProbe("x", "c", window)})
    feeds = [{"x": normal(1, 3, 40, 40, seed=seed)} for seed in range(8)]
    drawn = gathered(model, feeds, probes).layers["l"]
    assert drawn.rows.shape == (takers.ROWS, 1, 27)
    monkeypatch.setattr(takers, "GRAM_PLACES", 1 << 20)
    every = gathered(model, feeds, probes).layers["l"]
    # an element is a mean of 4 c^2 x x over 4,096 places: normal numbers to the fourth power have
    # a root mean square of at most sqrt(E z^8) / E z^4 = 3.4 times their mean, so their mean has an
    # error of 3.4 / sqrt(4096) = 0.053; 729 elements stay within 5 of that
    scale = np.diagonal(every.gram, axis1=1, axis2=2).mean()
    assert 0 < np.abs(drawn.gram - every.gram).max() < 5 * 0.053 * scale


# What is kept


def test_places_of_a_tensor_are_spread_over_all_samples_and_few(build):
    model = build("g (float[N, 8, 64, 64] x) => (float y) { y = Mul (x, x) }")
    feeds = [{"x": np.full((1, 8, 64, 64), n, np.float32)} for n in range(5)]
    found = gathered(model, feeds, Probes(tensors={"x": 1})).tensors["x"]
    assert found.values.shape == found.gains.shape
    assert found.values.shape[1] == 8
    assert takers.ELEMENTS * 0.9 < found.values.size <= takers.ELEMENTS
    counts = np.unique(found.values[:, 0], return_counts=True)
    np.testing.assert_array_equal(counts[0], range(5))
    assert len(set(counts[1])) == 1
    np.testing.assert_allclose(found.gains, 4 * found.values**2)


def test_channels_keep_their_column(build):
    model = build("g (float[N, 3, 9, 9] x) => (float y) { y = Mul (x, x) }")
    x = np.broadcast_to(np.arange(3, dtype=np.float32)[:, None, None], (1, 3, 9, 9))
    found = gathered(model, [{"x": x.copy()}], Probes(tensors={"x": 1})).tensors["x"]
    np.testing.assert_array_equal(found.values, np.tile([0, 1, 2], (81, 1)))


def test_samples_of_several_sizes(build):
    model = build("g (float x) => (float y) { c = MatMul (x, w) y = Mul (c, c) }", w=(4, 3))
    feeds = [{"x": normal(1, n, 4, seed=n)} for n in (2, 7, 3)]
    probes = Probes(tensors={"x": -1}, layers={"l": LayerProbe("x", "c", Stack())})
    found = gathered(model, feeds, probes)
    want = np.concatenate([feed["x"][0] for feed in feeds])
    np.testing.assert_array_equal(found.tensors["x"].values, want)
    np.testing.assert_array_equal(found.layers["l"].rows[:, 0], want)


def test_what_is_longer_than_a_channel_axis_counts_positions(build):
    model = build("g (float x) => (float y) { y = Mul (x, x) }")
    feeds = [{"x": normal(1, 1, takers.CHANNELS + 1, seed=seed)} for seed in range(2)]
    found = gathered(model, feeds, Probes(tensors={"x": -1})).tensors["x"]
    assert found.values.shape == (2 * (takers.CHANNELS + 1), 1)


def test_matrices_of_a_product(build):
    text = (
        "g (float[N, 3, 9, 4] a, float[N, 3, 4, 70] b) => (float y) "
        "{ c = MatMul (a, b) y = Mul (c, c) }"
    )
    feeds = [{"a": normal(2, 3, 9, 4, seed=n), "b": normal(2, 3, 4, 70, seed=n + 50)}
             for n in range(9)]  # fmt: skip
    probes = Probes(products={"p": ProductProbe("a", "b", "c")})
    found = gathered(build(text), feeds, probes).products["p"]
    # samples 0, 3 and 6 of 9, all 6 matrices of each; 64 columns of 70
    assert found.left.shape == (18, 9, 4)
    assert found.right.shape == (18, 4, takers.SIDE)
    assert found.gains.shape == (18, 9, takers.SIDE)
    np.testing.assert_array_equal(found.heads, [0, 1, 2] * 6)
    np.testing.assert_array_equal(found.left[6:12], feeds[3]["a"].reshape(6, 9, 4))
    products = found.left @ found.right
    np.testing.assert_allclose(found.gains, 4 * products**2, rtol=1e-3, atol=1e-4)


def test_an_operand_without_a_batch_is_every_matrix_s(build):
    text = "g (float[N, 9, 4] a, float[4, 5] b) => (float y) { c = MatMul (a, b) y = Mul (c, c) }"
    feed = {"a": normal(3, 9, 4), "b": normal(4, 5)}
    probes = Probes(products={"p": ProductProbe("a", "b", "c")})
    found = gathered(build(text), [feed], probes).products["p"]
    np.testing.assert_array_equal(found.right, np.tile(feed["b"], (3, 1, 1)))
    np.testing.assert_array_equal(found.left, feed["a"])


def test_gains_are_means_over_elements_and_samples(build):
    model = build("g (float[N, 4, 3] x) => (float y) { y = Mul (x, x) }")
    feeds = [{"x": normal(1, 4, 3, seed=seed)} for seed in range(3)]
    found = gathered(model, feeds, Probes(gains=("x",))).gains["x"]
    assert np.isclose(found, np.mean([4 * feed["x"] ** 2 for feed in feeds]), rtol=1e-5)


def test_what_no_gradient_reaches_gives_no_evidence(build):
    """An op without a kernel in the middle: zeros before it would call every error free."""
    text = (
        "g (float[4, 2, 3] x) => (float y) "
        "{ a = Mul (x, k) s, h, e = LSTM <hidden_size = 5> (a, w, r) c = MatMul (h, m) "
        "y = Mul (c, c) }"
    )
    model = build(text, w=(1, 20, 3), r=(1, 20, 5), k=(3,), m=(5, 2))
    probes = Probes(
        tensors={"a": -1, "h": -1}, layers={"l": LayerProbe("h", "c", Stack())}, gains=("a", "c")
    )
    found = gathered(model, [{"x": normal(4, 2, 3)}], probes)
    assert found.opaque == ("LSTM",)
    assert (set(found.tensors), set(found.layers), set(found.gains)) == ({"h"}, {"l"}, {"c"})


def test_a_gradient_that_is_not_finite_gives_no_evidence(build):
    model = build("g (float x) => (float y) { c = Sqrt (x) y = Mul (c, k) }", k=(4,))
    found = gathered(model, [{"x": np.zeros((1, 3, 4), np.float32)}],
                     Probes(tensors={"x": -1, "c": -1}, gains=("x", "c")))  # fmt: skip
    assert (set(found.tensors), set(found.gains)) == ({"c"}, {"c"})


def test_same_seed_same_evidence_other_seed_other(build):
    model, feeds = build(NET, **SHAPES), [{"x": normal(2, 4, seed=seed)} for seed in range(3)]
    probes = Probes(tensors={"b": -1}, layers={"l": LayerProbe("x", "a", Stack())}, gains=("a",))
    one, same, other = (gathered(model, feeds, probes, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one.tensors["b"].gains, same.tensors["b"].gains)
    assert np.array_equal(one.layers["l"].gram, same.layers["l"].gram)
    assert one.gains == same.gains
    assert not np.array_equal(one.tensors["b"].gains, other.tensors["b"].gains)
