# SPDX-License-Identifier: Apache-2.0
"""Verify proves the emitted model, or raises: a failed check is never a warning."""

import numpy as np
import pytest

from qhyvit_onnx.config import CompileConfig, Guard
from qhyvit_onnx.config import Verification as Settings
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.errors import AuditError, PassError
from qhyvit_onnx.facts import EMITTED, FLOAT, INTERFACE, PLACEMENT, UNITS, VERIFICATION, Placement
from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.interface import Interface
from qhyvit_onnx.passes.verify import Verify
from qhyvit_onnx.pipeline import default_pipeline
from qhyvit_onnx.runtime import View
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import TARGETS, find_target
from qhyvit_onnx.units import find_units

ARM, AVX2 = (find_target(name, frozenset()).with_free_int8() for name in ("arm64", "x64-avx2"))
every_target = pytest.mark.parametrize(
    "target", [t.with_free_int8() for t in TARGETS], ids=lambda t: t.name
)
SHAPE = (1, 64, 8, 8)
NET = """
g (float[N, 64, 8, 8] x) => (float[N, 64, 8, 8] y) {
    [first] a = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, w, b)
    [relu] r = Relu (a)
    [second] y = Conv (r, p)
}
"""
WEIGHTS = {"w": (64, 64, 3, 3), "b": (64,), "p": (64, 64, 1, 1)}
ONCE = Settings(samples=4, rounds=0)


def feeds(count=4, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def emitted(build):
    """Return a function: text, weights, target -> state after InsertQdq."""

    def run(text=NET, weights=WEIGHTS, target=ARM, held_back=None, exclude=(), shape=SHAPE):
        config = CompileConfig(guard=Guard(samples=0), exclude=exclude)
        state = State(build(text, **weights), config, Feeds.of(feeds(shape=shape)), held_back)
        for item in default_pipeline(config, target)[:-1]:
            item.run(state)
        return state

    return run


@pytest.fixture
def planted(build):
    """Return a function: emitted text, float text, units placed int8 -> state to be verified.

    ``folded`` is the float model after all folds, if that is another one.
    """

    def run(text, float_text, int8, folded=None, **arrays):
        words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
        model = build(text, **{n: a for n, a in arrays.items() if n in words})
        words = set(float_text.replace("(", " ").replace(")", " ").replace(",", " ").split())
        source = build(float_text, **{n: a for n, a in arrays.items() if n in words})
        shape = [d.dim_value or 1 for d in source.graph.input[0].type.tensor_type.shape.dim]
        state = State(source, CompileConfig(), Feeds.of(feeds(2, shape)))
        state.put(UNITS, tuple(find_units(state.graph)))
        state.put(PLACEMENT, Placement(tuple(int8), {}, {}))
        state.put(FLOAT, folded or source)
        state.put(INTERFACE, Interface())
        state.graph = import_graph(model)
        return state

    return run


@every_target
def test_a_sound_model_is_proven(emitted, target):
    state = emitted(target=target)
    outcome = Verify(target, ONCE).run(state)
    proof = state.get(VERIFICATION)
    assert proof.kernels == {"first": "QLinearConv", "second": "QLinearConv"}
    assert proof.views == tuple(str(view) for view in View)
    assert not proof.held_back
    # three tensors and two weights of normal numbers, each rounded to 8 bits: -38 dB each
    assert proof.closeness["y"].sqnr_db > 28
    assert proof.closeness["y"].cosine > 0.999
    assert proof.closeness["y"].samples == 4
    assert proof.times == {}
    assert outcome.note.startswith("2 integer kernels confirmed, SQNR ")
    assert outcome.changed == 0


def test_what_is_verified_is_what_is_handed_on_and_nothing_changes(emitted):
    state = emitted()
    before = state.model().SerializeToString(deterministic=True)
    Verify(ARM, ONCE).run(state)
    assert state.get(EMITTED).SerializeToString(deterministic=True) == before
    assert state.model().SerializeToString(deterministic=True) == before


def test_two_runs_prove_the_same(emitted):
    proofs = []
    for state in (emitted(), emitted()):
        Verify(ARM, ONCE).run(state)
        proofs.append(state.get(VERIFICATION))
    assert proofs[0].closeness == proofs[1].closeness
    assert proofs[0].kernels == proofs[1].kernels


def test_held_back_samples_are_used_where_there_are_some(emitted):
    other = feeds(6, seed=9)
    state = emitted(held_back=Feeds.of(other))
    Verify(ARM, Settings(samples=5, rounds=0)).run(state)
    assert state.get(VERIFICATION).held_back
    assert state.get(VERIFICATION).closeness["y"].samples == 5


@pytest.mark.parametrize(("cores", "threads"), [(1, {1}), (2, {1, 2}), (8, {1, 2})])
def test_times_are_measured_when_asked(emitted, monkeypatch, cores, threads):
    monkeypatch.setattr("qhyvit_onnx.passes.verify.cores", lambda: cores)
    state = emitted()
    Verify(ARM, Settings(samples=1, rounds=2)).run(state)
    times = state.get(VERIFICATION).times
    assert times.keys() == threads
    for paired in times.values():
        assert 0 <= paired.float_ms < 1000
        assert 0 <= paired.int8_ms < 1000


@pytest.mark.parametrize(
    ("int8", "slower"),
    [([2.0] * 10, True), ([2.0] * 9 + [0.5], True), ([2.0] * 8 + [0.5] * 2, False),
     ([1.0] * 10, False), ([0.5] * 9 + [90.0], False)],
)  # fmt: skip
def test_slower_is_what_took_longer_nearly_always(emitted, monkeypatch, int8, slower):
    monkeypatch.setattr(
        "qhyvit_onnx.passes.verify.paired_times", lambda *_, **__: ([1.0] * 10, int8)
    )
    state = emitted()
    Verify(ARM, Settings(samples=1)).run(state)
    assert state.get(VERIFICATION).slower == slower
    assert state.get(VERIFICATION).times[1].int8_ms == 1e3 * float(np.median(int8))


def test_slower_on_one_thread_only_is_not_slower(emitted, monkeypatch):
    times = iter([([1.0] * 10, [2.0] * 10), ([1.0] * 10, [0.9] * 10)])
    monkeypatch.setattr("qhyvit_onnx.passes.verify.cores", lambda: 2)
    monkeypatch.setattr("qhyvit_onnx.passes.verify.paired_times", lambda *_, **__: next(times))
    state = emitted()
    Verify(ARM, Settings(samples=1)).run(state)
    found = state.get(VERIFICATION)
    assert [found.times[count].slower for count in (1, 2)] == [True, False]
    assert not found.slower


def test_a_float_unit_listed_int8_is_named(emitted):
    state = emitted(exclude=("second",))
    placement = state.get(PLACEMENT)
    state._facts[PLACEMENT] = Placement((*placement.int8, "second"), placement.carried, {})
    with pytest.raises(AuditError, match="was placed int8 but onnxruntime") as caught:
        Verify(ARM, ONCE).run(state)
    assert caught.value.node == "second"
    assert not state.has(EMITTED)


def test_an_int8_unit_listed_float_is_named(emitted):
    state = emitted()
    state._facts[PLACEMENT] = Placement(("first",), {}, {})
    with pytest.raises(AuditError, match="was placed float but onnxruntime") as caught:
        Verify(ARM, ONCE).run(state)
    assert caught.value.node == "second"


GRID = {
    "s": np.float32(0.02),
    "z": np.uint8(128),
    "wq": np.random.default_rng(0).integers(-60, 60, (64, 64, 1, 1)).astype(np.int8),
    "ws": np.full(64, 0.01, np.float32),
    "wz": np.zeros(64, np.int8),
    "w": (64, 64, 1, 1),
}
FLOAT_CONV = "g (float[1, 64, 4, 4] x) => (float[1, 64, 4, 4] y) { [conv] y = Conv (x, w) }"


def test_int8_weights_on_a_layer_that_does_not_fuse(planted):
    text = """g (float[1, 64, 4, 4] x) => (float[1, 64, 4, 4] y) {
        wd = DequantizeLinear <axis = 0> (wq, ws, wz)
        [conv] y = Conv (x, wd)
    }"""
    with pytest.raises(AuditError, match="dequantizes constant wq at every run"):
        Verify(ARM, ONCE).run(planted(text, FLOAT_CONV, [], **GRID))
    with pytest.raises(AuditError, match="placed int8") as caught:
        Verify(ARM, ONCE).run(planted(text, FLOAT_CONV, ["conv"], **GRID))
    assert caught.value.node == "conv"


def test_a_relu_that_does_not_fold(planted):
    # zero point 128: codes below it mean negative numbers, which a Relu would cut
    text = """g (float[1, 64, 4, 4] x) => (float[1, 64, 4, 4] y) {
        xq = QuantizeLinear (x, s, z)
        xd = DequantizeLinear (xq, s, z)
        wd = DequantizeLinear <axis = 0> (wq, ws, wz)
        [conv] a = Conv (xd, wd)
        r = Relu (a)
        rq = QuantizeLinear (r, s, z)
        y = DequantizeLinear (rq, s, z)
    }"""
    float_text = FLOAT_CONV.replace("y = Conv (x, w)", "a = Conv (x, w) y = Relu (a)")
    with pytest.raises(AuditError, match="placed int8") as caught:
        Verify(ARM, ONCE).run(planted(text, float_text, ["conv"], **GRID))
    assert caught.value.node == "conv"


def test_a_float_product_fed_by_two_dq(planted):
    float_text = "g (float[4, 4] x) => (float[4, 4] y) { e = Exp (x) [qk] y = MatMul (x, e) }"
    text = """g (float[4, 4] x) => (float[4, 4] y) {
        e = Exp (x)
        xq = QuantizeLinear (x, s, z)
        xd = DequantizeLinear (xq, s, z)
        eq = QuantizeLinear (e, s, z)
        ed = DequantizeLinear (eq, s, z)
        [qk] y = MatMul (xd, ed)
    }"""
    with pytest.raises(AuditError, match="product was placed float") as caught:
        Verify(ARM, ONCE).run(planted(text, float_text, [], **GRID))
    assert caught.value.node == "qk"


def test_a_float_layer_quantized_unasked(planted):
    text = """g (float[1, 64, 4, 4] x) => (float[1, 64, 4, 4] y) {
        xq = QuantizeLinear (x, s, z)
        xd = DequantizeLinear (xq, s, z)
        [conv] a = Conv (xd, w)
        aq = QuantizeLinear (a, s, z)
        y = DequantizeLinear (aq, s, z)
    }"""
    with pytest.raises(AuditError, match="placed float but") as caught:
        Verify(ARM, ONCE).run(planted(text, FLOAT_CONV, [], **GRID))
    assert caught.value.node == "conv"


def test_a_layer_outside_every_unit_quantized_unasked(planted):
    # ConvTranspose is in no unit, and is quantized unasked all the same
    float_text = FLOAT_CONV.replace("y = Conv", "y = ConvTranspose")
    text = """g (float[1, 64, 4, 4] x) => (float[1, 64, 4, 4] y) {
        xq = QuantizeLinear (x, s, z)
        xd = DequantizeLinear (xq, s, z)
        [conv] a = ConvTranspose (xd, w)
        aq = QuantizeLinear (a, s, z)
        y = DequantizeLinear (aq, s, z)
    }"""
    with pytest.raises(AuditError):
        Verify(ARM, ONCE).run(planted(text, float_text, [], **GRID))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (
            "g (float[1, 64, 4, 4] x) => (float[a, b, c, d] y) { y = Concat <axis = 1> (x, x) }",
            "has shape",
        ),
        ("g (float[1, 64, 4, 4] x) => (float[a, b, c, d] z) { z = Exp (x) }", "no output 'y'"),
    ],
)
def test_another_shape_or_name_of_an_output(planted, text, word):
    float_text = "g (float[1, 64, 4, 4] x) => (float[a, b, c, d] y) { y = Exp (x) }"
    with pytest.raises(PassError, match=word):
        Verify(ARM, ONCE).run(planted(text, float_text, []))


def test_an_invalid_model_is_a_bug_of_a_pass(planted):
    float_text = "g (float[1, 4] x) => (float[1, 4] y) { y = Exp (x) }"
    state = planted(float_text, float_text, [])
    state.graph.nodes[0].op = "Expp"
    with pytest.raises(PassError, match="not valid ONNX"):
        Verify(ARM, ONCE).run(state)


def test_nothing_to_quantize_is_proven_too(emitted):
    text = "g (float[1, 64, 8, 8] x) => (float[1, 64, 8, 8] y) { e = Tanh (x) y = Neg (e) }"
    state = emitted(text, {})
    Verify(ARM, ONCE).run(state)
    assert state.get(VERIFICATION).kernels == {}
    # the same float kernels
    assert state.get(VERIFICATION).closeness["y"].sqnr_db > 120


def test_outputs_of_whole_numbers_are_compared(emitted):
    text = NET.replace(
        "float[N, 64, 8, 8] y)", "float[N, 64, 8, 8] y, int64[N, K, 8, 8] best)"
    ).replace("(r, p)", "(r, p) best = ArgMax <axis = 1> (y)")
    state = emitted(text)
    Verify(ARM, ONCE).run(state)
    assert set(state.get(VERIFICATION).closeness) == {"y", "best"}


@pytest.fixture
def folded_into(planted, build):
    """Return a function: body, body after folds -> state to be verified; all in float."""

    def run(before, after, out="float[1, 64, 4, 4] y", **arrays):
        text = f"g (float[1, 64, 4, 4] x) => ({out}) {{ {before} }}"
        folded = build(text.replace(before, after), **arrays)
        return planted(text, text, [], folded=folded, **arrays)

    return run


@pytest.mark.parametrize("relative", [3e-4, -1e-2, 1.0])
def test_folds_that_change_the_function_are_a_bug(folded_into, relative):
    # normal numbers, 2048 of them: a range of about 7 for 64 x 4 x 4 x 2
    wrong = np.float32(7 * relative)
    state = folded_into("y = Add (x, c)", "y = Sub (x, c)", c=-wrong / 2)
    with pytest.raises(PassError, match="folding changed output 'y' by ") as caught:
        Verify(ARM, ONCE).run(state)
    assert "--fold off" in str(caught.value.hint)


def test_folds_that_only_round_pass(folded_into):
    state = folded_into("y = Add (x, c)", "y = Sub (x, c)", c=np.float32(1e-4))  # 3e-5 of the range
    Verify(ARM, ONCE).run(state)
    assert state.has(VERIFICATION)


def test_one_channel_that_a_fold_spoils_is_found(folded_into):
    spoiled = np.ones((64, 1, 1), np.float32)
    spoiled[17] = 1.001
    state = folded_into("y = Mul (x, o)", "y = Mul (x, s)", o=np.ones((64, 1, 1), "f4"), s=spoiled)
    with pytest.raises(PassError, match="folding changed output 'y'"):
        Verify(ARM, ONCE).run(state)


@pytest.mark.parametrize(("factor", "fails"), [(1 + 1e-6, False), (1.01, True)])
def test_a_single_score_is_judged_over_samples(folded_into, factor, fails):
    before = "m = ReduceMean <axes = [1, 2, 3], keepdims = 0> (x) y = Mul (m, o)"
    state = folded_into(
        before, before.replace("o)", "s)"), "float[1] y", o=np.float32(1), s=np.float32(factor)
    )
    if fails:
        with pytest.raises(PassError, match="folding changed output 'y'"):
            Verify(ARM, ONCE).run(state)
    else:
        Verify(ARM, ONCE).run(state)


def test_folds_that_make_nan_are_a_bug(folded_into):
    after = "z = Sub (x, x) n = Div (z, z) y = Add (x, n)"
    with pytest.raises(PassError, match="by inf of its range"):
        Verify(ARM, ONCE).run(folded_into("y = Identity (x)", after))


@pytest.mark.filterwarnings("ignore:invalid value")  # -inf minus -inf, when outputs are compared
def test_infinity_stays_where_it_was(folded_into):
    before = "z = Relu (x) l = Log (z) y = Add (l, z)"  # log 0 = -inf in half of the positions
    Verify(ARM, ONCE).run(folded_into(before, before))
    with pytest.raises(PassError, match="by inf of its range"):
        Verify(ARM, ONCE).run(folded_into(before, "z = Abs (x) l = Log (z) y = Add (l, z)"))
