# SPDX-License-Identifier: Apache-2.0
"""A small map resized by a product is the map that Resize gives, in every mode; others stay."""

import numpy as np
import pytest

from qhyvit_onnx.passes._small_resizes import multiply_resizes
from tests.conftest import build_model

NUMBERS = {
    "twice": np.array([1, 1, 2, 2], np.float32),
    "odd": np.array([1, 1, 1.5, 0.6], np.float32),
    "deeper": np.array([1, 2, 2, 2], np.float32),
    "sizes": np.array([2, 6, 11, 9], np.int64),
    "spatial": np.array([11, 9], np.int64),
}
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
    assert multiply_resizes(found.graph) == 1
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
        {"attrs": LINEAR + ", axes = [2, 3]", "operands": "x, , , spatial", "opset": 18},
    ],
)
def test_it_stays(state, how):
    found = state(resize(**how))
    assert multiply_resizes(found.graph) == 0
    assert [node.op for node in found.graph.nodes] == ["Resize", "Neg"]
