# SPDX-License-Identifier: Apache-2.0
"""A small map resized by a product is the map that Resize gives, in every mode; others stay."""

import numpy as np
import pytest

from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig, Effort, Guard, Verification
from qhyvit_onnx.facts import Grids
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.passes._forms import Forms
from qhyvit_onnx.passes._small_resizes import multiply_resizes
from qhyvit_onnx.runtime import Options, View, optimized
from tests.conftest import build_model

NUMBERS = {
    "twice": np.array([1, 1, 2, 2], np.float32),
    "odd": np.array([1, 1, 1.5, 0.6], np.float32),
    "deeper": np.array([1, 2, 2, 2], np.float32),
    "sizes": np.array([2, 6, 11, 9], np.int64),
    "roi": np.array([0, 0, -0.5, 0, 1, 1, 1, 1], np.float32),
    "spatial": np.array([11, 9], np.int64),
}
NOTHING = Forms([], Grids({}, {}), {})
CROP = ', coordinate_transformation_mode = "tf_crop_and_resize", extrapolation_value = 9.0'
LINEAR = 'mode = "linear"'


def resize(attrs=LINEAR, operands="x, , twice", shape="2, 6, 7, 7", opset=17):
    return build_model(
        f"""<ir_version: 9, opset_import: ["": {opset}]>
        g (float[{shape}] x) => (float[a, b, c, d] y)
        {{ [up] r = Resize <{attrs}> ({operands}) y = Neg (r) }}""",
        **NUMBERS,
    )


@pytest.mark.parametrize(
    "attrs",
    [
        LINEAR,
        'mode = "cubic"',
        LINEAR + ', coordinate_transformation_mode = "align_corners"',
        LINEAR + ', coordinate_transformation_mode = "asymmetric"',
    ],
)
@pytest.mark.parametrize("operands", ["x, , twice", "x, , odd", "x, , , sizes"])
@pytest.mark.parametrize("samples", ["2", "n"])
def test_it_is_the_same_map(state, run_model, attrs, operands, samples):
    model = resize(attrs, operands, f"{samples}, 6, 7, 7")
    found = state(model)
    assert multiply_resizes(found.graph, NOTHING).count == 1
    found.graph.cleanup().toposort()
    assert [node.op for node in found.graph.nodes] == ["Reshape", "MatMul", "Reshape", "Neg"]
    x = {"x": np.random.default_rng(0).normal(0, 1, (2, 6, 7, 7)).astype(np.float32)}
    want, got = (run_model(m, x)[0] for m in (model, found.model()))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    "how",
    [
        {"attrs": 'mode = "nearest"'},
        {"operands": "x, , deeper"},  # between channels, too
        {"shape": "2, 6, 9, 8"},  # 72 pixels
        {"shape": "2, 6, h, w"},
        {"attrs": LINEAR + CROP, "operands": "x, roi, twice"},
        {"attrs": LINEAR + ", axes = [2, 3]", "operands": "x, , , spatial", "opset": 18},
    ],
)
def test_it_stays(state, how):
    found = state(resize(**how))
    assert multiply_resizes(found.graph, NOTHING) == NOTHING
    assert [node.op for node in found.graph.nodes] == ["Resize", "Neg"]


def test_between_codes_it_is_a_product_of_integers(state):
    found = state(resize())
    before = Forms([], Grids({"x": Grid(0.1, 9), "r": Grid(0.2, 3)}, {}), {"x": "x", "r": "r"})
    after = multiply_resizes(found.graph, before)
    (unit,) = after.chosen
    assert unit.name == "up"
    assert {name: after.carried[name] for name in (unit.inputs[0].name, unit.output.name)} == {
        unit.inputs[0].name: "x", unit.output.name: "r",
    }  # fmt: skip
    weight = unit.weight.values
    rounded = after.grids.weight_of(unit)
    assert np.abs(rounded - weight).max() <= 0.51 * after.grids.weights["up"].scale.max()
    assert rounded.sum(axis=0) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_no_two_neighbouring_factors_saturate_sums_of_16_bits(state, mode):
    found = state(resize(f'mode = "{mode}"'))
    before = Forms([], Grids({"x": Grid(0.1, 9), "r": Grid(0.2, 3)}, {}), {"x": "x", "r": "r"})
    after = multiply_resizes(found.graph, before)
    codes = np.abs(after.grids.codes_of(after.chosen[0]).astype(int))
    assert 255 * (codes[1:] + codes[:-1]).max() < 2**15
    assert codes.max() > 64


def test_one_that_floats_leave_stays_float(state):
    found = state(resize())
    after = multiply_resizes(found.graph, Forms([], Grids({"x": Grid(0.1, 9)}, {}), {"x": "x"}))
    assert (after.chosen, after.carried, after.count) == ([], {"x": "x"}, 1)


@pytest.mark.parametrize("target", ["arm64", "x64-vnni"])
def test_onnxruntime_runs_it_on_integers(target):
    rng = np.random.default_rng(0)
    p, q = (rng.normal(0, 0.1, (64, 64, 1, 1)).astype(np.float32) for _ in range(2))
    model = build_model(
        f"""<ir_version: 9, opset_import: ["": 17]>
        g (float[1, 64, 7, 7] x) => (float[1, 64, 14, 14] y)
        {{ a = Conv (x, p) [up] r = Resize <{LINEAR}> (a, , twice) y = Conv (r, q) }}""",
        **NUMBERS, p=p, q=q,
    )  # fmt: skip
    feeds = [{"x": rng.normal(0, 1, (1, 64, 7, 7)).astype(np.float32)} for _ in range(4)]
    config = CompileConfig(
        target=target, guard=Guard(samples=0), effort=Effort.FAST, force_int8=("Conv*",),
        verification=Verification(samples=2, rounds=0, replay=2),
    )  # fmt: skip
    found = compile_model(model, feeds, config)
    for view in View:
        running = {n.name: n.op_type for n in optimized(found.model, Options(view=view)).graph.node}
        assert running["up"] == "QLinearMatMul"
    assert found.report.replay.differing == []
    assert found.report.outputs[0].sqnr_db > 32  # five roundings to 7 or 8 bits
