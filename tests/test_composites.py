# SPDX-License-Identifier: Apache-2.0
"""Composites are found however exporters write them, and only where nothing else reads inside."""

import numpy as np
import pytest

from qhyvit_onnx.composites import find_composites
from qhyvit_onnx.graph import import_graph

HEADER = """
g (float[N, 4, 6, 8] x) => ({outputs})
<float root = {{1.4142135}}, float inverse = {{0.70710677}}, float one = {{1.0}},
 float half = {{0.5}}, float three = {{3.0}}, float nought = {{0.0}}, float six = {{6.0}},
 float eps = {{0.00001}}, float two = {{2.0}}>
{{ {body} }}
"""
WAYS = [
    ("Gelu", "d = Div(x, root) e = Erf(d) p = Add(e, one) m = Mul(x, p) y = Mul(m, half)"),
    ("Gelu", "d = Mul(inverse, x) e = Erf(d) p = Add(one, e) m = Mul(p, x) y = Mul(half, m)"),
    ("Gelu", "d = Div(x, root) e = Erf(d) p = Add(e, one) h = Mul(x, half) y = Mul(h, p)"),
    ("Gelu", "d = Div(x, root) e = Erf(d) p = Add(e, one) h = Mul(p, half) y = Mul(x, h)"),
    ("Gelu", "d = Div(x, root) e = Erf(d) p = Add(e, one) m = Mul(x, p) y = Div(m, two)"),
    ("Silu", "s = Sigmoid(x) y = Mul(s, x)"),
    ("HardSwish", "a = Add(x, three) c = Clip(a, nought, six) m = Mul(x, c) y = Div(m, six)"),
    ("HardSwish", "c = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, c)"),
    ("HardSigmoid", "a = Add(x, three) c = Clip(a, nought, six) y = Div(c, six)"),
    ("Softmax", "p = ReduceMax<axes = [3]>(x) c = Sub(x, p)"
     " e = Exp(c) t = ReduceSum(e, last) y = Div(e, t)"),
    ("Softmax", "e = Exp(x) t = ReduceSum(e, last) y = Div(e, t)"),
    (
        "LayerNorm",
        "m = ReduceMean<axes = [3]>(x) c = Sub(x, m) q = Pow(c, two) v = ReduceMean<axes = [3]>(q)"
        " s = Add(v, eps) r = Sqrt(s) n = Div(c, r) k = Mul(n, gamma) y = Add(k, gamma)",
    ),
    (
        "LayerNorm",
        "m = ReduceMean<axes = [3]>(x) c = Sub(x, m) q = Mul(c, c) v = ReduceMean<axes = [3]>(q)"
        " s = Add(eps, v) r = Sqrt(s) i = Reciprocal(r) n = Mul(c, i) y = Mul(gamma, n)",
    ),
    (
        "LayerNorm",
        "f = Cast<to = 1>(x) m = ReduceMean<axes = [3]>(f) c = Sub(f, m) w = Cast<to = 1>(c)"
        " q = Pow(w, two) v = ReduceMean<axes = [3]>(q) s = Add(v, eps) r = Sqrt(s) y = Div(w, r)",
    ),
    (
        "GroupNorm1",
        "g = Reshape(x, one_group) i = InstanceNormalization(g, unit, zero)"
        " r = Reshape(i, full) k = Mul(r, scale) y = Add(k, scale)",
    ),
]  # fmt: skip


@pytest.fixture
def composites(build):
    """Return a function: nodes as text -> (kind, ops of its nodes) of every composite."""

    def find(body, outputs="float[N, 4, 6, 8] y", misses=None):
        model = build(
            HEADER.format(body=body, outputs=outputs),
            last=np.array([3]), gamma=(8,), unit=np.ones(1, np.float32),
            zero=np.zeros(1, np.float32), scale=(4, 1, 1),
            one_group=np.array([0, 1, -1]), full=np.array([-1, 4, 6, 8]),
        )  # fmt: skip
        return find_composites(import_graph(model), misses)

    return find


@pytest.mark.parametrize(("kind", "body"), WAYS)
def test_finds(composites, kind, body):
    found = composites(body)
    assert [composite.kind for composite in found] == [kind]
    assert found[0].output.name == "y"
    assert found[0].nodes[-1].outputs[0].name == "y"
    if "Cast<to = 1>(x)" not in body:
        assert found[0].input.name == "x"
        assert len(found[0].nodes) == body.count("(")


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        # a value inside is an output of the graph
        (WAYS[0][1], "float[N, 4, 6, 8] y, float[N, 4, 6, 8] e"),
        (WAYS[5][1], "float[N, 4, 6, 8] y, float[N, 4, 6, 8] s"),
        (WAYS[11][1], "float[N, 4, 6, 8] y, float[N, 4, 6, 1] v"),
        # another constant, slope, exponent or axis
        (WAYS[0][1].replace("root", "two"), ""),
        (WAYS[6][1].replace("x, three", "x, two"), ""),
        (WAYS[7][1].replace("0.16666667", "0.2"), ""),
        (WAYS[11][1].replace("c, two", "c, three"), ""),
        (WAYS[11][1].replace("v = ReduceMean<axes = [3]>", "v = ReduceMean<axes = [2]>"), ""),
        (WAYS[9][1].replace("ReduceMax<axes = [3]>", "ReduceMax<axes = [2]>"), ""),
        # two groups are not one
        (WAYS[14][1].replace("one_group", "full").replace("unit, zero", "scale, scale"), ""),
    ],
)
def test_declines(composites, body, outputs):
    assert composites(body, outputs or "float[N, 4, 6, 8] y") == []


def test_a_near_miss_has_a_reason(composites):
    misses = []
    composites(WAYS[11][1], "float[N, 4, 6, 8] y, float[N, 4, 6, 8] q", misses)
    composites(
        WAYS[11][1].replace("v = ReduceMean<axes = [3]>", "v = ReduceMean<axes = [2]>"),
        misses=misses,
    )
    reasons = {miss.reason for miss in misses}
    assert "LayerNorm: reductions over axes that are not one constant set" in reasons


def test_a_node_belongs_to_one_composite(composites):
    found = composites(f"{WAYS[6][1].replace('y =', 'h =')} s = Sigmoid(h) y = Mul(h, s)")
    assert [composite.kind for composite in found] == ["HardSwish", "Silu"]
    nodes = [id(node) for composite in found for node in composite.nodes]
    assert len(nodes) == len(set(nodes))
