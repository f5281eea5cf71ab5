# SPDX-License-Identifier: Apache-2.0
"""Layout gives the index map of every chain of movement and changes nothing."""

import dataclasses

import numpy as np
import pytest

from qhyvit_onnx.data import Feeds
from qhyvit_onnx.facts import LAYOUT
from qhyvit_onnx.layout import completion
from qhyvit_onnx.layout.roles import Role, RoleKind
from qhyvit_onnx.passes.layout import Layout

ATTENTION = """g (float[{batch}, 8, 4, 4] x) => (float[{batch}, 8, 4, 4] y) {{
    c = Conv (x, w) f = Reshape (c, flat) t = Transpose <perm = [0, 2, 1]> (f)
    u = MatMul (t, v) h = Reshape (u, heads) p = Transpose <perm = [2, 0, 3, 1, 4]> (h)
    q = Gather <axis = 0> (p, zero) k = Gather <axis = 0> (p, one)
    kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, kt) a = Softmax (s) o = MatMul (a, q)
    j = Transpose <perm = [0, 2, 1, 3]> (o)
    r = Reshape (j, tokens) b = Transpose <perm = [0, 2, 1]> (r) m = Reshape (b, map)
    y = Conv (m, w) }}"""
ARRAYS = {
    "w": (8, 8, 1, 1), "v": (8, 16), "zero": np.int64(0), "one": np.int64(1),
    "flat": np.int64([0, 8, -1]), "heads": np.int64([0, 16, 2, 2, 4]),
    "tokens": np.int64([0, 16, 8]), "map": np.int64([0, 8, 4, 4]),
}  # fmt: skip


@pytest.fixture
def analysed(build, state):
    """Return a function: batch -> (state, outcome) after the pass."""

    def run(batch="n", text=ATTENTION, samples=(), **arrays):
        made = build(text.format(batch=batch), **(arrays or ARRAYS))
        held = dataclasses.replace(state(made), calibration=Feeds.of(samples))
        return held, Layout().run(held)

    return run


@pytest.mark.parametrize("batch", ["n", "2"])
def test_says_where_channels_go(analysed, batch):
    held, outcome = analysed(batch)
    assert outcome.note == (
        "4 chains, 2 permutations; channel: 1 whole, 2 split, 1 merged; shapes: 0 unknown"
    )
    found = {(chain.source, chain.end): chain.channel for chain in held.get(LAYOUT).chains}
    assert found == {
        ("c", "t"): Role(RoleKind.WHOLE, (2,)),
        ("u", "q"): Role(RoleKind.SPLIT, (1, 3)),
        ("u", "kt"): Role(RoleKind.SPLIT, (1, 2)),
        ("o", "m"): Role(RoleKind.MERGED, (1,)),
    }


def test_changes_nothing(analysed):
    held, outcome = analysed()
    before = held.source.graph.node
    assert outcome.changed == 0
    assert [node.op_type for node in held.model().graph.node] == [node.op_type for node in before]
    again = dataclasses.replace(held, _facts={}, graph=None)
    assert Layout().run(again).note == outcome.note
    assert held.model().SerializeToString() == again.model().SerializeToString()


def test_keeps_the_function(analysed, run_model):
    held, _ = analysed()
    x = np.random.default_rng(0).standard_normal((3, 8, 4, 4)).astype(np.float32)
    want, got = (run_model(model, {"x": x})[0] for model in (held.source, held.model()))
    np.testing.assert_array_equal(got, want)  # the same nodes on the same numbers


def test_a_lookalike_is_not_taken_for_flat(analysed):
    """A Reshape to the shape that Flat has, without its Transpose: channels lie among tokens."""
    text = ATTENTION.replace("f = Reshape (c, flat) t = Transpose <perm = [0, 2, 1]> (f)",
                             "t = Reshape (c, flat)")  # fmt: skip
    held, outcome = analysed(text=text, **{**ARRAYS, "flat": np.int64([0, 16, 8])})
    assert "2 merged" in outcome.note
    chain = next(chain for chain in held.get(LAYOUT).chains if chain.source == "c")
    assert chain.map.is_permutation
    assert chain.channel == Role(RoleKind.MERGED, (1,))


def test_what_has_no_map_is_counted_by_reason(analysed):
    text = """g (float[{batch}, 4, 8] x, int64[2] k) => (float[{batch}, 2, 8] y) {{
        s = Relu (x) y = Gather <axis = 1> (s, k) }}"""
    held, outcome = analysed(text=text, batch="n", zero=np.int64(0))
    assert outcome.note == "0 chains, 0 permutations; shapes: 0 unknown"
    assert outcome.misses == {"Gather: indices are computed from data": 1}
    assert held.get(LAYOUT).moves == {}


def test_shapes_that_only_a_run_shows_are_marked(build, state, monkeypatch):
    monkeypatch.setattr(completion, "symbolic_shapes", lambda _model: {})  # slow to start
    header = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>\n'
    body = "m = com.microsoft.FusedMatMul (x, v) y = Transpose <perm = [0, 2, 1]> (m)"
    text = f"{header}g (float[2, 4, 8] x) => (float[2, 16, 4] y) {{ {body} }}"
    held = state(build(text, v=(8, 16)))
    outcome = Layout().run(held)
    assert outcome.note == "0 chains, 0 permutations; shapes: 2 unknown"
    assert outcome.misses == {"shape unknown": 2}
    seen = state(build(text, v=(8, 16)))
    seen.calibration = Feeds.of([{"x": np.zeros((2, 4, 8), np.float32)}])
    outcome = Layout().run(seen)
    assert outcome.note.endswith("shapes: 0 unknown, 2 observed on one sample")
    assert seen.get(LAYOUT).observed == ("m", "y")
    assert outcome.misses == {}
