# SPDX-License-Identifier: Apache-2.0
"""Place takes the cheapest placement that is quiet enough; the graph stays as it is."""

import numpy as np
import pytest

from qhyvit_onnx.config import CompileConfig, Effort, Folding, Guard, Scope
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.errors import ConfigError, PassError
from qhyvit_onnx.facts import FLOAT, PLACEMENT, SEARCHED, SENSITIVITY, UNITS
from qhyvit_onnx.passes._sensitivity import measure
from qhyvit_onnx.passes.place import Place
from qhyvit_onnx.passes.sense import Sense
from qhyvit_onnx.pipeline import default_pipeline
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import TARGETS, find_target

ARM = find_target("arm64", frozenset())
every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
CONV = "Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]>"
W = (64, 64, 3, 3)
SHAPE = (1, 64, 8, 8)
OFF = Guard(samples=0)


@pytest.fixture
def place(build):
    """Return a function: body, weights, target -> (placement, state, outcome)."""

    def run(
        body,
        weights,
        target=ARM,
        guard=OFF,
        exclude=(),
        force=(),
        shape=SHAPE,
        count=4,
        out="a, b, c, d",
        scope=Scope.ALL,
    ):
        dims = ", ".join(str(dim) for dim in shape)
        text = f"g (float[{dims}] x) => (float[{out}] y) {{ {body} }}"
        rng = np.random.default_rng(4)
        feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]
        config = CompileConfig(
            guard=guard,
            exclude=tuple(exclude),
            force_int8=tuple(force),
            folding=Folding(scope=scope),
        )
        state = State(build(text, **weights), config, Feeds.of(feeds))
        for item in default_pipeline(config, target):
            if item.name == "place":
                before = state.model().SerializeToString(deterministic=True)
                outcome = item.run(state)
                break
            item.run(state)
        assert state.model().SerializeToString(deterministic=True) == before  # always
        return state.get(PLACEMENT), state, outcome

    return run


RESIDUAL = f"""
    [first] a = {CONV} (x, w1)
    [second] b = {CONV} (a, w2)
    [sum] s = Add (a, b)
    [third] y = {CONV} (s, w3)
"""
RESIDUAL_WEIGHTS = {"w1": W, "w2": W, "w3": W}


@every_target
def test_layers_and_what_lies_between_them(place, target):
    placement, state, outcome = place(RESIDUAL, RESIDUAL_WEIGHTS, target)
    assert placement.int8 == ("first", "second", "sum", "third")
    assert placement.reasons == {}
    assert placement.carried == {name: name for name in ("x", "a", "b", "s", "y")}
    assert [unit.name for unit in state.get(UNITS)] == list(placement.int8)
    assert (outcome.changed, outcome.note) == (0, "4 of 4 units int8")


def test_two_runs_place_the_same(place):
    first, second = (place(RESIDUAL, RESIDUAL_WEIGHTS, guard=Guard())[0] for _ in range(2))
    assert first == second


@every_target
def test_the_function_is_kept(place, build, run_model, target):
    _, state, _ = place(RESIDUAL, RESIDUAL_WEIGHTS, target, Guard())
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    want, got = (run_model(m, {"x": x})[0] for m in (state.get(FLOAT), state.model()))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("patterns", "out"),
    [
        (["second"], ["second"]),
        (["s*"], ["second", "sum"]),
        (["first", "third"], ["first", "third"]),
        (["?econd"], ["second"]),
        (["*"], ["first", "second", "sum", "third"]),
    ],
)
def test_exclude_leaves_units_float_whatever_they_cost(place, patterns, out):
    placement, _, _ = place(RESIDUAL, RESIDUAL_WEIGHTS, exclude=patterns)
    assert not set(out) & set(placement.int8)
    assert all(placement.reasons[name].startswith("excluded by '") for name in out)
    assert set(placement.int8) | placement.reasons.keys() == {"first", "second", "sum", "third"}


def test_what_int8_would_slow_down_is_told_by_how_much(place):
    # between float neighbours an Add would pay for two Q and a DQ
    body = "[one] a = Exp (x) [two] b = Tanh (x) [sum] s = Add (a, b) y = Exp (s)"
    placement, _, _ = place(body, {})
    assert placement.int8 == ()
    assert placement.reasons["sum"].startswith("int8 here would cost ")
    assert placement.reasons["sum"].endswith(" % more in all")


@every_target
def test_softmax_stays_float_on_every_target(place, target):
    placement = attention(place, target)
    softmax = {name for name, reason in placement.reasons.items() if "Softmax is faster" in reason}
    assert len(softmax) == 1
    assert not softmax & set(placement.int8)


def test_a_float_unit_is_never_carried_for_itself(place):
    placement, _, _ = place(RESIDUAL, RESIDUAL_WEIGHTS, exclude=["second", "sum"])
    assert "b" not in placement.carried


@pytest.mark.parametrize("part", ["relu", "gate", "bias"])
def test_exclude_by_any_node_of_a_unit(place, part):
    body, weights = {
        "relu": (f"[main] a = {CONV} (x, w) [relu] y = Relu (a)", {"w": W}),
        "gate": (f"c = {CONV} (x, w) [gate] g = Sigmoid (c) [main] m = Mul (c, g)"
                 f" y = {CONV} (m, w)", {"w": W}),
        "bias": ("[main] m = MatMul (x, v) [bias] y = Add (m, b)", {"v": (8, 64), "b": (64,)}),
    }[part]  # fmt: skip
    assert "main" in place(body, weights)[0].int8
    assert "main" not in place(body, weights, exclude=[part])[0].int8


@pytest.mark.parametrize("pattern", ["thrid", "First", ""])
def test_a_pattern_that_matches_nothing_is_an_error(place, pattern):
    with pytest.raises(ConfigError, match=f"--exclude '{pattern}' matches no node"):
        place(RESIDUAL, RESIDUAL_WEIGHTS, exclude=["first", pattern])


ATTENTION = """
    q = MatMul (x, w1) k = MatMul (x, w2) v = MatMul (x, w3)
    t = Transpose <perm = [0, 2, 1]> (k)
    [qk] s = MatMul (q, t) p = Softmax (s) [av] o = MatMul (p, v)
    y = MatMul (o, w4)
"""
ATTENTION_WEIGHTS = dict.fromkeys(("w1", "w2", "w3", "w4"), (96, 96))


def attention(place, target, body=ATTENTION):
    return place(body, ATTENTION_WEIGHTS, target, shape=(1, 64, 96), out="a, b, c")[0]


def test_movement_travels_with_the_codes(place):
    placement = attention(place, ARM)
    assert (placement.carried["k"], placement.carried["t"]) == ("k", "k")


def test_movement_that_ends_in_float_travels_as_float(place):
    body = f"a = {CONV} (x, w) t = Transpose <perm = [0, 1, 3, 2]> (a) y = Exp (t)"
    placement, _, _ = place(body, {"w": W})
    assert "t" not in placement.carried


def sensitive_net():
    """Return twelve layers; one takes a pair of channels that nearly cancel: int8 loses them."""
    rng = np.random.default_rng(1)
    layers = [0.1 * rng.standard_normal((64, 64, 1, 1)) for _ in range(12)]
    body = " ".join(
        f"[layer{i}] t{i} = Conv ({'x' if i == 0 else f't{i - 1}'}, w{i})" for i in range(12)
    )
    # layer 5 writes channel 0 a thousand times larger, layer 6 reads it a thousand times less
    layers[5][0] *= 2000
    layers[6][:, 0] /= 2000
    weights = {f"w{i}": w.astype(np.float32) for i, w in enumerate(layers)}
    return body + " y = Identity (t11)", weights


def test_the_guard_spares_the_layer_that_wrecks_the_output(place):
    body, weights = sensitive_net()
    guard, shape = Guard(max_share=0.5), (1, 64, 16, 16)  # large: layers weigh more than borders
    placement, state, outcome = place(body, weights, guard=guard, scope=Scope.OFF, shape=shape)
    noise = state.get(SENSITIVITY)
    assert noise.keys() == {f"layer{i}" for i in range(12)}
    # the output of layer 5 has one scale: a step of the large channel swallows the others
    most = sorted(noise, key=noise.get)[-2:]
    assert set(most) == {"layer5", "layer6"}
    assert not set(most) & set(placement.int8)
    assert placement.reasons["layer5"].startswith("sensitive: alone it makes ")
    assert "left float by the guard" in outcome.note


@pytest.mark.parametrize("guard", [OFF, Guard(max_noise=1e9), Guard(max_share=0.0)])
def test_a_guard_that_may_do_nothing_spares_nothing(place, guard):
    body, weights = sensitive_net()
    placement, state, outcome = place(body, weights, guard=guard, scope=Scope.OFF)
    assert len(placement.int8) == 12
    assert bool(state.get(SENSITIVITY)) is bool(guard.samples)
    assert "guard" not in outcome.note


def test_what_folding_cures_needs_no_guard(place):
    body, weights = sensitive_net()
    placement, state, outcome = place(body, weights, guard=Guard(max_share=0.25))
    assert len(placement.int8) == 12
    # twelve layers of 8 bits, none worse than the others: below -30 dB each
    assert max(state.get(SENSITIVITY).values()) < 1e-3
    assert "guard" not in outcome.note


def test_a_quiet_net_needs_no_guard(place):
    placement, state, _ = place(RESIDUAL, RESIDUAL_WEIGHTS, guard=Guard(max_share=1.0))
    assert len(placement.int8) == 4
    assert set(state.get(SENSITIVITY)) == set(placement.int8)
    # one layer of random weights, each rounded to 8 bits: below -30 dB
    assert all(0 < noise < 1e-3 for noise in state.get(SENSITIVITY).values())


@pytest.mark.parametrize("end", ["", "Softmax", "Sigmoid"])
def test_noise_is_the_error_of_the_unit_alone(place, build, run_model, end):
    """Of what the output is made of: a closing function hides errors where it is sure."""
    # one unit: its noise is what the emitted model really does
    body, weights = f"[only] y = {CONV} (x, w)", {"w": W}
    whole = f"[only] c = {CONV} (x, w) y = {end} (c)" if end else body
    _, state, _ = place(whole, weights, guard=Guard(samples=4))
    grids = state.get(SEARCHED)
    written = grids.activations["c" if end else "y"]
    unit = state.get(UNITS)[0]
    text = f"g (float[1, 64, 8, 8] x) => (float[1, 64, 8, 8] y) {{ {body} }}"
    float_model = build(text, **weights)
    rounded = build(text, w=grids.weight_of(unit))
    ratios = []
    for feed in state.calibration:
        want = run_model(float_model, feed)[0].astype(np.float64)
        got = run_model(rounded, {"x": grids.activations["x"].fake(feed["x"])})[0]
        got = written.fake(got)
        ratios.append(np.square(got - want).sum() / np.square(want).sum())
    assert state.get(SENSITIVITY)["only"] == pytest.approx(np.mean(ratios), rel=1e-2)


def test_a_mask_before_a_closing_softmax_does_not_silence_the_guard(place):
    mask = np.zeros((1, 64, 8, 8), np.float32)
    mask[:, ::8, ::2] = -np.inf
    body = f"[only] c = {CONV} (x, w) m = Add (c, mask) y = Softmax <axis = 1> (m)"
    _, state, _ = place(body, {"w": W, "mask": mask}, guard=Guard(samples=4))
    assert 1e-6 < state.get(SENSITIVITY)["only"] < 1e-2


@pytest.fixture
def sensed(place, monkeypatch):
    """Return a function: effort, runs that the guard may take -> outcome, ticks, whether near."""

    def run(effort, runs):
        monkeypatch.setattr("qhyvit_onnx.passes.sense.effort_of", lambda _: effort)
        seen, ticks = [], []

        def watched(*given, near):
            seen.append(near)
            return measure(*given, near=near)

        monkeypatch.setattr("qhyvit_onnx.passes.sense.measure", watched)
        body, weights = sensitive_net()
        rng = np.random.default_rng(0)
        feeds = Feeds.of([{"x": rng.standard_normal(SHAPE).astype(np.float32)} for _ in range(8)])
        state = place(body, weights)[1]
        fresh = State(state.source, state.config, feeds)
        for item in default_pipeline(state.config, ARM):
            if item.name == "sense":
                fresh.tick = lambda done, total: ticks.append((done, total))
                guard = Guard(samples=32, work=runs * 12 * 64 * 64 * 8 * 8)
                outcome = Sense(ARM, guard).run(fresh)
                break
            item.run(fresh)
        return outcome, ticks, seen

    return run


@pytest.mark.parametrize(("effort", "runs"), [(Effort.DEFAULT, 25), (Effort.FAST, 100)])
def test_the_guard_takes_no_more_work_than_it_may(sensed, effort, runs):
    outcome, ticks, near = sensed(effort, runs)
    assert ticks == [(done, 24) for done in range(1, 25)]  # 12 units: enough for two samples
    assert outcome.note.startswith("12 units on 2 samples: together ")
    assert near == [False]


@pytest.mark.parametrize(
    ("effort", "runs", "near"),
    [(Effort.DEFAULT, 13, False), (Effort.DEFAULT, 11, True), (Effort.FAST, 47, True)],
)
def test_where_one_sample_is_too_much_errors_are_followed_together(sensed, effort, runs, near):
    outcome, ticks, seen = sensed(effort, runs)
    assert ticks[-1] == (12, 12)
    assert outcome.note.startswith("12 units on 1 samples: together ")
    assert seen == [near]


def test_without_grids_it_is_a_bug(build, state):
    with pytest.raises(PassError, match="was not given"):
        Place(ARM).run(state(build("g (float[1, 4] x) => (float[1, 4] y) { y = Exp (x) }")))


@every_target
def test_nothing_to_place(place, target):
    placement, state, outcome = place("y = Exp (x)", {}, target, guard=Guard())
    assert (placement.int8, placement.carried, placement.reasons) == ((), {}, {})
    assert state.get(SENSITIVITY) == {}
    assert outcome.note == "0 of 0 units int8"


def test_what_is_forced_runs_int8_whatever_it_costs(place):
    body = "[one] a = Exp (x) [two] b = Tanh (x) [sum] s = Add (a, b) y = Exp (s)"
    assert place(body, {})[0].int8 == ()
    assert place(body, {}, force=["s*"])[0].int8 == ("sum",)


def test_the_guard_does_not_spare_what_is_forced(place):
    body, weights = sensitive_net()
    guard, shape = Guard(max_share=0.5), (1, 64, 16, 16)
    placement, _, _ = place(
        body, weights, guard=guard, scope=Scope.OFF, shape=shape, force=["layer5"]
    )
    assert "layer5" in placement.int8


@pytest.mark.parametrize(
    ("pattern", "exclude", "why"),
    [
        ("frist", (), "matches no unit that can run int8"),
        ("first", ("f*",), "first stays float: excluded by 'f\\*'"),
    ],
)
def test_what_cannot_be_forced_is_an_error(place, pattern, exclude, why):
    with pytest.raises(ConfigError, match=why):
        place(RESIDUAL, RESIDUAL_WEIGHTS, exclude=exclude, force=[pattern])


def test_a_weight_of_noise_leaves_more_in_float(place):
    placed = [
        len(place(RESIDUAL, RESIDUAL_WEIGHTS, guard=Guard(max_noise=1.0, weight=weight))[0].int8)
        for weight in (0.0, 1e9)
    ]
    assert placed == [4, 0]
