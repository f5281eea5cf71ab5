# SPDX-License-Identifier: Apache-2.0
"""DetectBridges names the hand-overs between convolution and attention; it changes nothing."""

import numpy as np
import pytest

from qhyvit_onnx.facts import BRIDGES
from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.passes.detect_bridges import DetectBridges, Side, anchor_of
from qhyvit_onnx.passes.normalise import Normalise

CONV = "Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]>"
TO_TOKENS = "r = Reshape (c, flat) t = Transpose <perm = [0, 2, 1]> (r)"
ATTENTION = """
    q = MatMul (t, wq) k = MatMul (t, wk) v = MatMul (t, wv)
    kt = Transpose <perm = [0, 2, 1]> (k)
    [qk] s = MatMul (q, kt) p = Softmax (s) [av] o = MatMul (p, v)
    [proj] u = MatMul (o, wo)
"""
TO_MAP = "h = Transpose <perm = [0, 2, 1]> (u) m = Reshape (h, map)"
SHAPES = {
    "w": (16, 16, 3, 3), "point": (16, 16, 1, 1), "flat": np.int64([1, 16, 64]),
    "map": np.int64([1, 16, 8, 8]), **dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16)),
}  # fmt: skip
HYBRID = f"[local] c = {CONV} (x, w) {TO_TOKENS} {ATTENTION} {TO_MAP} [back] y = {CONV} (m, w)"
SEPARABLE = f"""
    [local] c = {CONV} (x, w) {TO_TOKENS}
    [score] i = MatMul (t, one) [weigh] p = Softmax <axis = 1> (i)
    k = MatMul (t, wk) [mix] z = Mul (k, p) [sum] u = Mul (z, t) {TO_MAP}
    [back] y = {CONV} (m, w)
"""


@pytest.fixture
def bridges(build, state):
    """Return a function: body -> (bridges, outcome, state)."""

    def find(body, out="a, b, c, d"):
        words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
        arrays = {**SHAPES, "one": (16, 1)}
        used = {n: a for n, a in arrays.items() if n in words}
        text = f"g (float[1, 16, 8, 8] x) => (float[{out}] y) {{ {body} }}"
        held = state(build(text, **used))
        Normalise().run(held)
        outcome = DetectBridges().run(held)
        return held.get(BRIDGES), outcome, held

    return find


def test_one_in_one_out(bridges):
    found, outcome, _ = bridges(HYBRID)
    assert [bridge.direction for bridge in found] == ["in", "out"]
    assert outcome.note == "bridges: 1 into global regions, 1 out of them"
    entry, way_out = found
    assert {"local", "qk"} <= set(entry.nodes)
    assert "back" in way_out.nodes
    assert "8x8" in entry.why
    assert "qk" in entry.why
    assert entry.why.startswith("local features")
    assert way_out.why.startswith("global features")


def test_nothing_in_the_graph_changes(bridges, state):
    held = state(bridges(HYBRID)[2].model())
    before = held.model().SerializeToString(deterministic=True)
    outcome = DetectBridges().run(held)
    assert held.model().SerializeToString(deterministic=True) == before
    assert outcome.changed == 0


def test_two_runs_find_the_same(bridges):
    assert bridges(HYBRID)[0] == bridges(HYBRID)[0]


def test_separable_attention_counts_by_its_softmax(bridges):
    found, _, _ = bridges(SEPARABLE)
    assert [bridge.direction for bridge in found] == ["in", "out"]
    assert "weigh" in found[0].nodes


@pytest.mark.parametrize(
    "body",
    [
        f"c = {CONV} (x, w) y = {CONV} (c, w)",
        f"c = {CONV} (x, w) y = Softmax <axis = 1> (c)",  # the class scores of a segmentation
        f"c = {CONV} (x, w) [gate] g = Sigmoid (c) y = Mul (c, g)",
        "y = Conv (x, point)",
        "y = Exp (x)",
    ],
    ids=["only convolution", "softmax at the end", "gate", "no mixing", "nothing"],
)
def test_near_misses(bridges, body):
    found, outcome, _ = bridges(body)
    assert found == ()
    assert outcome.note == "bridges: 0 into global regions, 0 out of them"


def test_only_attention_has_no_bridge(bridges):
    found, _, _ = bridges(f"c = Identity (x) {TO_TOKENS} {ATTENTION} y = Identity (u)", "a, b, c")
    assert found == ()


def test_a_pointwise_layer_takes_no_side(bridges):
    body = HYBRID.replace(f"[back] y = {CONV} (m, w)", "[back] y = Conv (m, point)")
    found, _, _ = bridges(body)
    assert [bridge.direction for bridge in found] == ["in"]


def test_a_residual_around_attention_keeps_its_global_side(bridges):
    body = HYBRID.replace(f"[back] y = {CONV} (m, w)", f"n = Add (m, c) [back] y = {CONV} (n, w)")
    found, _, _ = bridges(body)
    assert [bridge.direction for bridge in found] == ["in", "out"]


def test_two_blocks_at_two_sizes_are_four_bridges(bridges, build, state):
    second = (
        HYBRID.replace("[local]", "[local2]").replace("[back]", "[back2]").replace("[qk]", "[qk2]")
        .replace("[av]", "[av2]").replace("[proj]", "[proj2]")
    )  # fmt: skip
    for name in ("c", "r", "t", "q", "k", "v", "kt", "s", "p", "o", "u", "h", "m"):
        for mark in (" = ", ")", ","):
            second = second.replace(f" {name}{mark}", f" {name}2{mark}")
            second = second.replace(f"({name}{mark}", f"({name}2{mark}")
    second = second.replace("flat", "flat2").replace(" map)", " map2)")
    second = second.replace("(x, w)", "(small, w)").replace(" y = ", " y2 = ")
    body = HYBRID.replace(" y = ", " y1 = ") + (
        " small = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (y1) " + second
    )
    text = f"g (float[1, 16, 8, 8] x) => (float[a, b, c, d] y2) {{ {body} }}"
    model = build(text, **SHAPES, flat2=np.int64([1, 16, 16]), map2=np.int64([1, 16, 4, 4]))
    del model.graph.initializer[[t.name for t in model.graph.initializer].index("point")]
    held = state(model)
    Normalise().run(held)
    DetectBridges().run(held)
    found = held.get(BRIDGES)
    assert [(b.direction, b.why.split()[3]) for b in found] == [
        ("in", "8x8"), ("out", "8x8"), ("in", "4x4"), ("out", "4x4"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "side"),
    [
        (f"y = {CONV} (x, w)", Side.LOCAL),
        ("y = Conv <kernel_shape = [1, 1]> (x, point)", Side.NONE),
        ("y = Conv (x, w)", Side.LOCAL),  # a kernel of 3x3 whether the attribute says so or not
        ("y = MaxPool <kernel_shape = [2, 2]> (x)", Side.LOCAL),
        ("y = AveragePool <kernel_shape = [2, 2]> (x)", Side.LOCAL),
        ("y = MatMul (x, x)", Side.GLOBAL),
        ("y = MatMul (x, b)", Side.NONE),
        ("y = Softmax (x)", Side.NONE),
        ("y = Relu (x)", Side.NONE),
    ],
)
def test_anchors(build, text, side):
    arrays = {"w": (16, 16, 3, 3), "point": (16, 16, 1, 1), "b": (8, 8)}
    used = {n: a for n, a in arrays.items() if f", {n})" in text}
    model = build(f"g (float[1, 16, 8, 8] x) => (float[a, b, c, d] y) {{ {text} }}", **used)
    assert anchor_of(import_graph(model).nodes[0]) is side
