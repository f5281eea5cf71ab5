# SPDX-License-Identifier: Apache-2.0
"""The audit believes only the graph that onnxruntime runs; every lie about it is an AuditError."""

import numpy as np
import pytest

from qhyvit_onnx.audit import audit
from qhyvit_onnx.errors import AuditError
from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.runtime import View
from qhyvit_onnx.units import find_units

FLOAT = """
g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
    [first] a = Conv <pads = [1, 1, 1, 1]> (x, w)
    [second] y = Conv (a, p)
}
"""
HEAD = """
g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
    xq = QuantizeLinear (x, s, z)
    xd = DequantizeLinear (xq, s, z)
    wd = DequantizeLinear <axis = 0> (wq, ws, wz)
    [first] a = Conv <pads = [1, 1, 1, 1]> (xd, wd)
"""
BOTH = (
    HEAD
    + """
    aq = QuantizeLinear (a, s, z)
    ad = DequantizeLinear (aq, s, z)
    pd = DequantizeLinear <axis = 0> (pq, ws, wz)
    [second] b = Conv (ad, pd)
    bq = QuantizeLinear (b, s, z)
    y = DequantizeLinear (bq, s, z)
}
"""
)
FIRST = (
    HEAD
    + """
    aq = QuantizeLinear (a, s, z)
    ad = DequantizeLinear (aq, s, z)
    [second] y = Conv (ad, p)
}
"""
)
UNFUSED = (
    HEAD
    + """
    [second] y = Conv (a, p)
}
"""
)
SANDWICH = (
    HEAD
    + """
    aq = QuantizeLinear (a, s, z)
    ad = DequantizeLinear (aq, s, z)
    [second] b = Conv (ad, p)
    bq = QuantizeLinear (b, s, z)
    y = DequantizeLinear (bq, s, z)
}
"""
)
GRIDS = {
    "s": np.float32(0.05),
    "z": np.uint8(128),
    "wq": np.random.default_rng(0).integers(-60, 60, (16, 16, 3, 3)).astype(np.int8),
    "pq": np.random.default_rng(1).integers(-60, 60, (16, 16, 1, 1)).astype(np.int8),
    "ws": np.full(16, 0.01, np.float32),
    "wz": np.zeros(16, np.int8),
}


@pytest.fixture
def units(build):
    return find_units(import_graph(build(FLOAT, w=(16, 16, 3, 3), p=(16, 16, 1, 1))))


@pytest.fixture
def emitted(build):
    """Return a function: text -> model with the arrays it reads."""

    def make(text):
        words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
        arrays = {**GRIDS, "p": (16, 16, 1, 1)}
        return build(text, **{name: a for name, a in arrays.items() if name in words})

    return make


@pytest.mark.parametrize("view", View)
def test_integer_kernels_are_seen(units, emitted, view):
    seen = audit(emitted(BOTH), units, ["first", "second"], view)
    assert [(item.unit, item.kernel) for item in seen] == [
        ("first", "QLinearConv"), ("second", "QLinearConv"),
    ]  # fmt: skip


@pytest.mark.parametrize("view", View)
def test_a_float_unit_is_not_reported(units, emitted, view):
    assert [item.unit for item in audit(emitted(FIRST), units, ["first"], view)] == ["first"]


@pytest.mark.parametrize("view", View)
def test_a_unit_placed_int8_that_runs_in_float(units, emitted, view):
    with pytest.raises(AuditError, match="placed int8 but onnxruntime") as caught:
        audit(emitted(FIRST), units, ["first", "second"], view)
    assert caught.value.node == "second"
    assert f"({view} view)" in caught.value.message
    assert "--exclude 'second'" in caught.value.hint


@pytest.mark.parametrize("view", View)
def test_a_unit_placed_float_that_runs_in_integers(units, emitted, view):
    with pytest.raises(AuditError, match=r"float but onnxruntime .* runs QLinearConv") as hit:
        audit(emitted(BOTH), units, ["first"], view)
    assert hit.value.node == "second"


@pytest.mark.parametrize("view", View)
def test_a_float_layer_quantized_unasked(units, emitted, view):
    # WeightBiasQuantization: float weights between a scalar DQ and a Q
    with pytest.raises(AuditError, match="placed float but") as caught:
        audit(emitted(SANDWICH), units, ["first"], view)
    assert caught.value.node == "second"


@pytest.mark.parametrize("view", View)
def test_weights_dequantized_at_every_run(units, emitted, view):
    with pytest.raises(AuditError, match="dequantizes constant wq at every run"):
        audit(emitted(UNFUSED), units, [], view)


def test_an_int8_unit_that_is_not_there(units, emitted):
    with pytest.raises(AuditError, match="no longer carries its name"):
        audit(emitted(FIRST.replace("[second]", "[other]")), units, ["first", "second"], View.HOST)


@pytest.mark.parametrize("suffix", ["_nhwc", "_transformed", "_token_3", "/MatMulAddFusion"])
def test_a_name_that_ends_as_onnxruntime_names_things(build, suffix):
    name = f"sum{suffix}"
    text = """
    g (uint8[1, 8] a, uint8[1, 8] b) => (uint8[1, 8] y) {
        ad = DequantizeLinear (a, s, z)
        bd = DequantizeLinear (b, s, z)
        c = Add (ad, bd)
        y = QuantizeLinear (c, s, z)
    }"""
    model = build(text, s=GRIDS["s"], z=GRIDS["z"])
    float_model = build("g (float[1, 8] a, float[1, 8] b) => (float[1, 8] c) { c = Add (a, b) }")
    for item in (*model.graph.node, *float_model.graph.node):
        item.name = name if item.op_type == "Add" else item.name
    seen = audit(model, find_units(import_graph(float_model)), [name], View.HOST)
    assert [(item.unit, item.kernel) for item in seen] == [(name, "QLinearAdd")]


@pytest.mark.parametrize("view", View)
@pytest.mark.parametrize("op", ["Softmax", "Sigmoid", "LeakyRelu"])
def test_functions_of_one_code_are_seen(build, op, view):
    text = f"""
    g (uint8[1, 8] a) => (uint8[1, 8] y) {{
        ad = DequantizeLinear (a, s, z)
        [only] b = {op} (ad)
        y = QuantizeLinear (b, t, u)
    }}"""
    grid = {"t": np.float32(1 / 256), "u": np.uint8(0)}
    model = build(text, s=GRIDS["s"], z=GRIDS["z"], **grid)
    float_model = build(f"g (float[1, 8] a) => (float[1, 8] b) {{ [only] b = {op} (a) }}")
    seen = audit(model, find_units(import_graph(float_model)), ["only"], view)
    assert [item.kernel for item in seen] == [f"QLinear{op}"]
