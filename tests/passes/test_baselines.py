# SPDX-License-Identifier: Apache-2.0
"""Every published method on layers so small that its choice can be made again by brute force."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="most methods look at gradients, which torch gathers")

from qhyvit_onnx.config import CompileConfig, Effort  # noqa: E402
from qhyvit_onnx.data import Feeds  # noqa: E402
from qhyvit_onnx.errors import ConfigError  # noqa: E402
from qhyvit_onnx.facts import BRIDGES, EVIDENCE, FLOAT, RANGES, SEARCHED  # noqa: E402
from qhyvit_onnx.graph import value  # noqa: E402
from qhyvit_onnx.grid import Cure, Grid  # noqa: E402
from qhyvit_onnx.kernels.executor import Executor  # noqa: E402
from qhyvit_onnx.kernels.quantizers import quantizer  # noqa: E402
from qhyvit_onnx.methods import Metric, Overflow  # noqa: E402
from qhyvit_onnx.passes._baselines import search as published  # noqa: E402
from qhyvit_onnx.passes._baselines.bridges import judges_of  # noqa: E402
from qhyvit_onnx.passes._baselines.pieces import activations_of, pieces_of  # noqa: E402
from qhyvit_onnx.passes._baselines.ranges import grid_between  # noqa: E402
from qhyvit_onnx.passes._segments import SAMPLES  # noqa: E402
from qhyvit_onnx.passes.search_scales import SearchScales  # noqa: E402
from qhyvit_onnx.pipeline import Watcher, default_pipeline, run  # noqa: E402
from qhyvit_onnx.programs import program_of  # noqa: E402
from qhyvit_onnx.recipes import find_recipe  # noqa: E402
from qhyvit_onnx.simulated import ChannelGrid, LogGrid, TwinGrid  # noqa: E402
from qhyvit_onnx.state import State  # noqa: E402
from qhyvit_onnx.targets import find_target  # noqa: E402
from qhyvit_onnx.units import find_units  # noqa: E402
from tests.blocks import mobilevit_v1  # noqa: E402

ARM = find_target("arm64", frozenset()).with_free_int8()
CONV = "net (float[N, 6, 5, 5] x) => (float[N, 4, 5, 5] y) { [conv] y = Conv (x, w, b) }"
WEIGHTS = {"w": (4, 6, 1, 1), "b": (4,)}
LINEAR = """
net (float[1, 24, 8] x) => (float[1, 24, 4] y) {{
  {body}
  [fc] y = MatMul (h, w)
}}
"""
NORM = LINEAR.format(body="h = LayerNormalization (x, gamma, beta)")
SILU = LINEAR.format(body="s = Sigmoid (x) h = Mul (x, s)")
NORMED = {
    "gamma": np.geomspace(0.1, 10, 8).astype(np.float32),
    "beta": np.linspace(-3, 9, 8).astype(np.float32),
    "w": (8, 4),
}
ATTENTION = """
net (float[1, 2, 12, 4] q, float[1, 2, 4, 12] k, float[1, 2, 12, 4] v) => (float[1, 2, 12, 4] y) {
  [qk] s = MatMul (q, k)
  m = Softmax (s)
  [av] y = MatMul (m, v)
}
"""


def feeds_of(shape=(1, 6, 5, 5), count=8, transform=lambda x: x):
    rng = np.random.default_rng(3)
    return [{"x": transform(rng.standard_normal(shape)).astype(np.float32)} for _ in range(count)]


def heads(count=8, loud=30.0):
    """Return queries, keys and values of two heads, the second ``loud`` times the first."""
    rng, scale = np.random.default_rng(4), np.float32([1, loud**0.5]).reshape(1, 2, 1, 1)
    shapes = {"q": (1, 2, 12, 4), "k": (1, 2, 4, 12), "v": (1, 2, 12, 4)}

    def drawn(shape):
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    return [{name: drawn(shape) for name, shape in shapes.items()} for _ in range(count)]


def weighed(model, feeds, precision="w4a4", name="minmax"):
    """Return the state that the search of grids finds."""
    config = CompileConfig(
        precision=precision, edge_precision=precision, recipe=name, effort=Effort.DEFAULT
    )
    state = State(model, config, Feeds.of(feeds))
    passes = default_pipeline(config, ARM)
    names = [item.name for item in passes]
    run(passes[: names.index(SearchScales.name)], state, Watcher())
    return state


def found_by(name, state, **search):
    """Return the grids of a recipe, settings of its search replaced by ``search``."""
    recipe = find_recipe(name)
    if search:
        outputs = replace(recipe.method.outputs, **search)
        recipe = replace(recipe, method=replace(recipe.method, outputs=outputs))
    grids, _ = published.search(state, recipe, ARM)
    return grids


def only_layer(state):
    """Return the one layer of a model: its rows (P, K), matrix (K, C), bias, gains (P, C)."""
    (unit,) = [u for u in find_units(state.graph) if u.weight is not None]
    known, weight = state.get(EVIDENCE).layers[unit.name], np.asarray(value(unit.weight))
    matrix = weight.reshape(weight.shape[0], -1).T if weight.ndim == 4 else weight
    bias = 0 if unit.bias is None else value(unit.bias)
    return unit, known.rows[:, 0], matrix, bias, known.gains


def fractions(lowest, highest):
    return [lowest + i * (highest - lowest) / 100 for i in range(101)]


def symmetric(x, step, bits=4):
    """Return x on the grid of signed codes, as all symmetric methods have it."""
    half, step = 1 << (bits - 1), np.float32(step)
    return np.clip(np.rint(x / step), -half, half - 1) * step


def on_codes(weight, step, bits=4):
    limit, step = (1 << (bits - 1)) - 1, np.asarray(step, np.float32)
    return np.clip(np.rint(weight / step), -limit, limit) * step


def cost(metric, want, got, gains, axis=None):
    if metric is Metric.COSINE:
        want, got = want.ravel().astype(np.float64), got.ravel().astype(np.float64)
        return 1 - want @ got / np.linalg.norm(want) / np.linalg.norm(got)
    return (gains * np.square(got - want, dtype=np.float64)).sum(axis=axis)


def assert_best(chosen, others):
    """Hold ``chosen`` to the least of ``others``; sums of float32 in another order differ."""
    assert chosen <= np.min(others) * (1 + 1e-4)
    assert chosen < 0.99 * np.max(others)  # else there was nothing to choose


# ranges


def test_minmax_is_what_was_seen(build):
    feeds = feeds_of(transform=lambda x: x * 2 + 1)
    state = weighed(build(CONV, **WEIGHTS), feeds, "w8a8")
    grids, x = found_by("minmax", state), np.stack([feed["x"] for feed in feeds])
    step = (x.max() - x.min()) / 255
    assert grids.activations["x"].scale == pytest.approx(step, rel=1e-6)
    assert grids.activations["x"].zero_point == round(-x.min() / step)
    weight = np.asarray(value(only_layer(state)[0].weight))
    want = np.abs(weight).max(axis=(1, 2, 3)) / 127
    np.testing.assert_allclose(grids.weights["conv"].scale, want, rtol=1e-6)
    assert not grids.simulated
    assert not grids.columns


def test_percentile_leaves_the_outermost_values_out(build):
    feeds = feeds_of((1, 6, 40, 40), transform=lambda x: x**3)  # 76,800 values, heavy tails
    text = CONV.replace("5, 5", "40, 40")
    grid = found_by("percentile", weighed(build(text, **WEIGHTS), feeds, "w8a8")).activations["x"]
    x = np.stack([feed["x"] for feed in feeds])
    low, high = np.quantile(x, [0.0001, 0.9999])
    # the histogram knows ends to half a bin of 4,096, and the outermost values lie far apart
    assert grid.scale * 255 == pytest.approx(high - low, rel=0.05)
    assert grid.scale * 255 < 0.8 * (x.max() - x.min())


def test_few_values_beside_zeros_are_not_left_out(build):
    feeds = feeds_of(transform=np.zeros_like)
    feeds[0]["x"][0, 0, 0, 0] = 3.0
    text = CONV.replace("5, 5", "50, 50")
    feeds = [{"x": np.pad(feed["x"], [(0, 0), (0, 0), (0, 45), (0, 45)])} for feed in feeds]
    grids = found_by("percentile", weighed(build(text, **WEIGHTS), feeds, "w8a8"))
    assert grids.activations["x"].high == pytest.approx(3.0, rel=1e-6)


# searches by what layers write


def test_easyquant_takes_the_best_cosines(build):
    state = weighed(build(CONV, **WEIGHTS), feeds_of())
    grids = found_by("easyquant", state)
    unit, rows, matrix, bias, _ = only_layer(state)
    seen, want = state.get(RANGES)["x"], rows @ matrix + bias
    peak = max(-seen.low, seen.high)
    (scale,), grid = grids.weights[unit.name].scale, grids.activations["x"]
    tried = fractions(0.5, 1.2)
    start = peak / 8 * min(tried, key=lambda f: abs(f - 1))

    def loss(step, weight_step):
        got = symmetric(rows, step) @ on_codes(matrix, weight_step) + bias
        return cost(Metric.COSINE, want, got, None)

    losses = [loss(start, np.abs(matrix).max() / 8 * f) for f in tried]
    assert_best(loss(start, scale), losses)  # the weight first, beside the default
    losses = [loss(peak / 8 * f, scale) for f in tried]
    assert_best(loss(grid.scale, scale), losses)
    assert (grid.zero_point, grid.bits) == (8, 4)


@pytest.mark.parametrize("name", ["ptq4vit", "q-hyvit:scale"])
def test_weights_of_convolutions_take_the_best_step_of_every_row(build, name):
    state = weighed(build(CONV, **WEIGHTS), feeds_of())
    grids = found_by(name, state, rounds=1)
    unit, rows, matrix, _, gains = only_layer(state)
    seen, want = state.get(RANGES)["x"], rows @ matrix
    tried, peak = fractions(0.01, 1.2), max(-seen.low, seen.high)
    x = symmetric(rows, peak / 8 * min(tried, key=lambda f: abs(f - 1)))

    def losses(steps):
        return cost(Metric.HESSIAN, want, x @ on_codes(matrix, steps), gains, axis=0)

    brute = [losses(np.abs(matrix).max(axis=0) / 8 * f) for f in tried]
    found = losses(grids.weights[unit.name].scale)
    for column in range(4):
        assert_best(found[column], [losses_[column] for losses_ in brute])


@pytest.mark.parametrize("name", ["ptq4vit", "q-hyvit:scale"])
def test_activations_take_the_best_step_beside_the_weight(build, name):
    state = weighed(build(CONV, **WEIGHTS), feeds_of())
    grids = found_by(name, state)
    unit, rows, matrix, _, gains = only_layer(state)
    weight = on_codes(matrix, grids.weights[unit.name].scale)

    def loss(step):
        return cost(Metric.HESSIAN, rows @ matrix, symmetric(rows, step) @ weight, gains)

    seen = state.get(RANGES)["x"]
    peak = max(-seen.low, seen.high)
    assert_best(
        loss(grids.activations["x"].scale), [loss(peak / 8 * f) for f in fractions(0.01, 1.2)]
    )


# what is treated apart


def test_fq_vit_gives_each_channel_its_power_of_two(build):
    wide = np.float32([0.1, 0.3, 1, 2, 4, 8, 8, 8])
    feeds = feeds_of((1, 24, 8), transform=lambda x: x * wide)
    text = NORM.replace(
        "h = LayerNormalization (x", "s = Sigmoid (x) r = Add (x, s) h = LayerNormalization (r"
    )
    state = weighed(build(text, **NORMED), feeds)
    grid, seen = found_by("fq-vit", state).simulated["r"], state.get(RANGES)["r"]
    values, step = state.get(EVIDENCE).tensors["r"].values, (seen.high - seen.low) / 255
    zero = np.clip(np.rint(-seen.low / step), 0, 255)
    for channel in range(8):
        tried = [step, step / 2, step / 4, step / 8]
        x = values[:, channel]
        errors = [
            np.square((np.clip(np.rint(x / s) + zero, 0, 255) - zero) * s - x).sum() for s in tried
        ]
        assert grid.scales[channel] == pytest.approx(tried[int(np.argmin(errors))], rel=1e-5)
    assert set(grid.zero_points) == {zero}
    assert len(set(grid.scales)) == 4


def test_fq_vit_writes_attention_in_powers_of_two(build):
    state = weighed(build(ATTENTION), heads())
    assert found_by("fq-vit", state).simulated["m"] == LogGrid(1.0, 1, 4)


def test_repq_vit_starts_its_logarithms_at_the_best_percentile(build):
    state = weighed(build(ATTENTION), heads())
    grid = found_by("repq-vit", state).simulated["m"]
    values = state.get(EVIDENCE).products["av"].left.ravel()
    tried = [float(np.quantile(values, share)) for share in (0.999, 0.9999, 0.99999)]

    def error(scale):
        with np.errstate(divide="ignore"):
            codes = np.maximum(np.rint(-2 * np.log2(values / scale)), 0)
        return np.square(np.where(codes < 16, scale * 2.0 ** (-codes / 2), 0) - values).sum()

    assert grid.scale == pytest.approx(min(tried, key=error), rel=1e-6)
    assert (grid.octave, grid.bits) == (2, 4)


def test_repq_vit_is_one_scale_once_folded(build):
    state = weighed(build(NORM, **NORMED), feeds_of((1, 24, 8)))
    grids = found_by("repq-vit", state)
    unit, rows, matrix, _, _ = only_layer(state)
    grid, column = grids.simulated["h"], grids.columns[unit.name]
    assert grid.scales.max() > 20 * grid.scales.min()  # as gamma has it
    simulated = grid.fake(rows) @ column.fake(matrix)
    # the fold: norms write x / r + b, one scale and zero point serve all channels, the weight is
    # multiplied by r before it is rounded, and the bias takes b back
    scale, zero = grid.scales.mean(), np.rint(grid.zero_points.mean())
    r, b = grid.scales / scale, (grid.zero_points - zero) * scale
    codes = np.clip(np.rint((rows / r + b) / scale) + zero, 0, 15)
    weight = column.grid.fake(matrix * r[:, None])
    folded = (codes - zero) * scale @ weight - b @ weight
    np.testing.assert_allclose(simulated, folded, rtol=1e-4, atol=1e-4 * np.abs(folded).max())


def test_repq_vit_rounds_weights_between_percentiles(build):
    model = build(CONV.replace("6", "64"), w=(4, 64, 1, 1), b=(4,))
    state = weighed(model, feeds_of((1, 64, 5, 5)))
    unit, _, matrix, _, _ = only_layer(state)
    grid = found_by("repq-vit", state).columns[unit.name].grid
    for row in range(4):
        x = matrix[:, row]

        def error(share, x=x):
            low, high = np.quantile(x, [1 - share, share])
            step = (high - low) / 15
            zero = -np.rint(low / step)
            return np.square(
                (np.clip(np.rint(x / step) + zero, 0, 15) - zero) * step - x
            ).sum(), step

        _, step = min(error(share) for share in (0.999, 0.9999, 0.99999))
        assert grid.scales[row] == pytest.approx(step, rel=1e-5)


def test_ptq4vit_gives_tails_a_step_of_their_own(build):
    state = weighed(build(SILU, w=(8, 4)), feeds_of((1, 24, 8), transform=lambda x: 4 * x))
    grids = found_by("ptq4vit", state)
    unit, rows, matrix, _, gains = only_layer(state)
    grid, weight = grids.simulated["h"], on_codes(matrix, grids.weights[unit.name].scale)
    assert grid.below == pytest.approx(0.27846 / 8)

    def loss(above):
        x = TwinGrid(grid.below, above, 0.0, 4).fake(rows)
        return cost(Metric.HESSIAN, rows @ matrix, x @ weight, gains)

    high = state.get(RANGES)["h"].high
    assert_best(loss(grid.above), [loss(high / 8 * f) for f in fractions(0.01, 1.2)])


def test_ptq4vit_splits_attention_where_it_costs_least(build):
    state = weighed(build(ATTENTION), heads())
    grids, known = found_by("ptq4vit", state), state.get(EVIDENCE).products["av"]
    v = grids.activations["v"].fake(known.right)
    want = known.left @ known.right

    def loss(split):
        m = TwinGrid(split / 7, 1 / 7, split, 4).fake(known.left)
        return cost(Metric.HESSIAN, want, m @ v, known.gains)

    found = grids.simulated["m"]
    assert found.above == pytest.approx(1 / 7)
    assert found.below == pytest.approx(found.split / 7)
    # values are searched after attention; a step from where they ended, the split is still best
    assert loss(found.split) <= 1.02 * min(loss(2.0**-i) for i in range(20))


# Q-HyViT


def uneven(x):
    """Return x with channels of widths 1 to 100."""
    return x * np.geomspace(1, 100, 6).reshape(1, 6, 1, 1)


def even_output(build):
    """Return a layer to which every channel of ``uneven`` means the same."""
    weight = np.random.default_rng(0).standard_normal((4, 6, 1, 1))
    weight /= np.geomspace(1, 100, 6).reshape(1, 6, 1, 1)
    return build(CONV, w=weight.astype(np.float32), b=(4,))


def test_granularity_is_searched_where_it_is_a_freedom(build):
    state = weighed(even_output(build), feeds_of(transform=uneven))
    assert not found_by("q-hyvit:scale", state).simulated
    grid = found_by("q-hyvit:granularity", state).simulated["x"]
    assert isinstance(grid, ChannelGrid)
    assert (grid.axis, grid.scales.size) == (1, 6)
    assert 30 < grid.scales[-1] / grid.scales[0] < 300
    assert set(grid.zero_points) == {8.0}  # the scheme is no freedom yet


def test_scheme_is_searched_where_it_is_a_freedom(build):
    state = weighed(build(CONV, **WEIGHTS), feeds_of(transform=lambda x: np.abs(x) - 0.2))
    before = found_by("q-hyvit:granularity", state)
    after = found_by("q-hyvit", state)

    def zeros(grids):
        found = grids.simulated.get("x", grids.activations["x"])
        return np.atleast_1d(getattr(found, "zero_points", getattr(found, "zero_point", None)))

    assert set(zeros(before)) == {8}
    assert max(zeros(after)) < 4


def test_each_stage_costs_less_than_the_one_before(build):
    feeds = feeds_of(transform=lambda x: uneven(np.abs(x) - 0.2))
    state = weighed(even_output(build), feeds, "w8a4")
    unit, rows, matrix, _, gains = only_layer(state)

    def loss(grids):
        grid = grids.simulated.get("x", grids.activations["x"])
        x = grid.fake(rows.reshape(-1, 6, 1)).reshape(rows.shape)
        weight = on_codes(matrix, grids.weights[unit.name].scale, bits=8)
        return cost(Metric.HESSIAN, rows @ matrix, x @ weight, gains)

    names = ("q-hyvit:scale", "q-hyvit:granularity", "q-hyvit")
    losses = [loss(found_by(name, state)) for name in names]
    assert losses[0] > 1.5 * losses[1]
    assert losses[1] > 1.5 * losses[2]


def test_an_overflowing_zero_point_saturates_and_is_not_chosen(build):
    clamped = grid_between(6.0, 8.0, 8, Overflow.CLAMPED)
    assert clamped.zero_point == 0
    assert clamped.fake(np.float32([6.0, 7.0, 8.0])).max() == pytest.approx(2.0, rel=1e-6)
    feeds = feeds_of(transform=lambda x: 7 + np.tanh(x))
    state = weighed(build(CONV, **WEIGHTS), feeds, "w8a8")
    found = found_by("q-hyvit", state)
    grid = found.simulated.get("x", found.activations["x"])
    if isinstance(grid, Grid):
        assert grid.cure is Cure.SYMMETRIC
    else:
        assert set(grid.zero_points) == {128.0}
    x = np.stack([feed["x"] for feed in feeds])[:, 0]
    assert np.abs(grid.fake(x) - x).max() < 0.2


def test_every_head_has_its_own_scale(build):
    state = weighed(build(ATTENTION), heads())
    grid, known = (
        found_by("q-hyvit:scale", state).simulated["q"],
        state.get(EVIDENCE).products["qk"],
    )
    peaks = [np.abs(known.left[known.heads == head]).max() for head in range(2)]
    assert grid.axis == -3
    np.testing.assert_allclose(grid.scales / grid.scales[0], peaks / peaks[0], rtol=1e-5)


def test_a_bridge_is_measured_where_it_ends():
    model = mobilevit_v1()
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(SAMPLES)]
    state = weighed(model, feeds)
    evidence = state.get(EVIDENCE)
    pieces = pieces_of(find_units(state.graph), evidence)
    judges = judges_of(state, pieces)
    bridge = next(b for b in state.get(BRIDGES) if b.direction == "in")
    inside = set(bridge.nodes) & judges.keys()
    assert len(inside) >= 2
    reading = next(
        item.readings[0]
        for item in activations_of(pieces, evidence, frozenset())
        if item.readings[0].piece.unit.name in inside
    )
    unit, grid = reading.piece.unit, Grid(0.5, 8, 4)
    judge = judges[unit.name]
    item = next(
        i for i in activations_of(pieces, evidence, frozenset()) if reading.tensor is i.same
    )
    executor, hooks, want = (
        Executor(program_of(state.get(FLOAT))),
        {(unit.name, 0): quantizer(grid)},
        0.0,
    )
    for feed in feeds:
        exact, got = (
            executor.run(feed, bridge.outputs),
            executor.run(feed, bridge.outputs, hooks=hooks),
        )
        want += sum(
            evidence.gains[name] * float((got[name] - exact[name]).square().sum())
            for name in bridge.outputs
        )
    assert want > 0
    assert judge.with_activation(item, grid) == pytest.approx(want, rel=1e-3)


# all of them


@pytest.mark.parametrize("name", ["easyquant", "ptq4vit", "repq-vit", "q-hyvit"])
def test_the_same_evidence_gives_the_same_grids(build, name):
    state = weighed(even_output(build), feeds_of(transform=uneven))
    one, two = found_by(name, state), found_by(name, state)
    assert one.activations == two.activations
    for first, second in ((one.weights, two.weights), (one.simulated, two.simulated)):
        assert first.keys() == second.keys()
    for unit in one.weights:
        np.testing.assert_array_equal(one.weights[unit].scale, two.weights[unit].scale)


def test_without_evidence_what_looks_at_layers_is_refused(build):
    config = CompileConfig(recipe="minmax", effort=Effort.FAST)
    state = State(build(CONV, **WEIGHTS), config, Feeds.of(feeds_of()))
    passes = default_pipeline(config, ARM)
    run(passes[: [item.name for item in passes].index(SearchScales.name)], state, Watcher())
    assert found_by("minmax", state).weights
    with pytest.raises(ConfigError, match="ptq4vit looks at what layers read"):
        found_by("ptq4vit", state)


def test_the_pass_searches_as_the_recipe_says(build):
    state = weighed(build(CONV, **WEIGHTS), feeds_of(), name="ptq4vit")
    outcome = SearchScales(ARM).run(state)
    assert outcome.note.startswith("ptq4vit: ")
    want = found_by("ptq4vit", state)
    assert state.get(SEARCHED).activations == want.activations
