# SPDX-License-Identifier: Apache-2.0
"""Shapes that the graph does not say are asked of onnxruntime, then seen in one run, or unknown."""

import numpy as np
import pytest

from qhyvit_onnx import runtime
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.layout import completion
from qhyvit_onnx.layout.completion import completed
from qhyvit_onnx.layout.roles import Role, RoleKind

HEADER = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>\n'
TEXT = """g (float[{dims}, 8, 4] x) => (float y)
    {{ m = com.microsoft.{op} y = Transpose <perm = [0, 2, 1]> (m) }}"""


@pytest.fixture
def model(build):
    """Return a function: (op, dim) -> model whose first node onnx knows nothing of."""

    def make(op, dims="2", **arrays):
        made = build(HEADER + TEXT.format(op=op, dims=dims), **arrays)
        made.graph.output[0].type.tensor_type.ClearField("shape")
        return made

    return make


@pytest.fixture
def no_help(monkeypatch):
    """Keep onnxruntime's inference out: it is slow to start, and one test of it is enough."""
    monkeypatch.setattr(completion, "symbolic_shapes", lambda _model: {})


def sample(size):
    x = np.random.default_rng(0).standard_normal((size, 8, 4)).astype(np.float32)
    return Feeds.of([{"x": x}])


def test_onnxruntime_knows_its_own_operators(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = model("QuickGelu (x)", "n")
    layout = completed(import_graph(made), lambda: made, Feeds.of([]))
    assert layout.unknown == ()
    assert layout.observed == ()
    (chain,) = layout.chains
    assert [str(dim) for dim in chain.map.shape] == ["n", "4", "8"]
    assert list(tmp_path.iterdir()) == []  # the tool's own file lands elsewhere


def test_the_rest_is_seen_on_a_sample(model, no_help):
    made = model("FusedMatMul (x, w)", w=(4, 6))
    layout = completed(import_graph(made), lambda: made, sample(2))
    assert layout.unknown == ()
    assert layout.observed == ("m", "y")
    assert layout.known.shapes["m"] == (2, 8, 6)
    assert layout.chains[0].map.role(2) == Role(RoleKind.WHOLE, (1,))


def test_a_sample_says_nothing_of_free_dims(model, no_help):
    """A size that one sample has need not be the size of the next."""
    made = model("FusedMatMul (x, w)", "n", w=(4, 6))
    layout = completed(import_graph(made), lambda: made, sample(3))
    assert layout.observed == ("m", "y")
    shape = layout.known.shapes["m"]
    assert len({*shape}) == 3
    assert all(dim.free_symbols == {dim} for dim in shape)


def test_without_a_sample_it_stays_unknown(model, no_help):
    made = model("FusedMatMul (x, w)", w=(4, 6))
    layout = completed(import_graph(made), lambda: made, Feeds.of([]))
    assert layout.unknown == ("m", "y")
    assert layout.observed == ()
    assert layout.chains == ()


def test_a_model_that_does_not_run_is_no_help(model, no_help):
    made = model("FusedMatMul (x, w)", w=(5, 6))
    layout = completed(import_graph(made), lambda: made, sample(2))
    assert layout.unknown == ("m", "y")


def test_nothing_is_asked_when_the_graph_says_it_all(build):
    def export():
        raise AssertionError("asked")

    made = build(
        "g (float[n, 3, 4] x) => (float[n, 4, 3] y) { y = Transpose <perm=[0, 2, 1]> (x) }"
    )
    assert completed(import_graph(made), export, sample(2)).unknown == ()


def test_a_broken_model_gives_no_shapes(model):
    made = model("QuickGelu (x)")
    made.graph.node[0].input[0] = "nowhere"
    assert runtime.symbolic_shapes(made) == {}
