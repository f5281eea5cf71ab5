# SPDX-License-Identifier: Apache-2.0
"""Shapes of single nodes on free dims: what is said holds for every size that onnxruntime runs."""

import numpy as np
import pytest
import sympy

from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.symbolic.dims import shown
from qhyvit_onnx.symbolic.shapes import infer

I = np.int64  # noqa: E741


def one(*values):
    return I(values)


NODES = {
    "same conv": ("Conv <pads = [1, 1, 1, 1]> (x, w)", {"w": (5, 4, 3, 3)}, "n 5 h w"),
    "valid conv": ("Conv (x, w)", {"w": (5, 4, 3, 3)}, "n 5 (h - 2) (w - 2)"),
    "strided conv": (
        "Conv <pads = [1, 1, 1, 1], strides = [2, 1]> (x, w)", {"w": (5, 4, 3, 3)},
        "n 5 floor(h/2 - 1/2) + 1 w",
    ),
    "dilated conv": (
        "Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (x, w)", {"w": (5, 4, 3, 3)}, "n 5 h w",
    ),
    "tensorflow conv": (
        'Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)', {"w": (5, 4, 3, 3)},
        "n 5 (floor(h/2 + 1/2)) (floor(w/2 + 1/2))",
    ),
    "pool": (
        "MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)", {},
        "n 4 (floor(h/2)) (floor(w/2))",
    ),
    "concat": ("Concat <axis = 2> (x, x, x)", {}, "n 4 3*h w"),
    "slice to the end": (
        "Slice (x, a, b, c)", {"a": one(0, 1), "b": one(2**63 - 1, 2**31 - 1), "c": one(2, 3)},
        "n 4 h (w - 1)",
    ),
    "slice before the end": (
        "Slice (x, a, b, c)", {"a": one(0), "b": one(-2), "c": one(3)}, "n 4 h ?",
    ),
    "backwards": (
        "Slice (x, a, b, c, d)", {"a": one(-1), "b": one(-(2**31)), "c": one(3), "d": one(-1)},
        "n 4 h w",
    ),
    "every second": (
        "Slice (x, a, b, c, d)", {"a": one(0), "b": one(2**31), "c": one(3), "d": one(2)},
        "n 4 h ?",
    ),
    "pad": ("Pad (x, a)", {"a": one(0, 0, 1, 2, 0, 0, 1, 0)}, "n 4 h + 2 w + 2"),
    "tile": ("Tile (x, a)", {"a": one(2, 1, 1, 3)}, "2*n 4 h 3*w"),
    "blocks": ("DepthToSpace <blocksize = 2> (x)", {}, "n 1 2*h 2*w"),
    "channels": ("SpaceToDepth <blocksize = 2> (x)", {}, "n 16 ? ?"),
    "upsample": ("Resize (x, , a)", {"a": np.float32([1, 1, 2, 2])}, "n 4 2*h 2*w"),
    "resize": ("Resize (x, , a)", {"a": np.float32([1, 1, 2, 1.5])}, "n 4 2*h ?"),
}  # fmt: skip


@pytest.mark.parametrize("case", NODES)
@pytest.mark.parametrize("size", [(1, 8, 8), (3, 10, 6)])
def test_free_dims(build, run_model, case, size):
    node, arrays, expected = NODES[case]
    model = build(f"g (float[n, 4, h, w] x) => (float y) {{ y = {node} }}", **arrays)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    found = infer(import_graph(model)).shapes["y"]
    assert [None if shown(dim) is None else str(dim) for dim in found] == written(expected)
    at = dict(zip(("n", "h", "w"), size, strict=True))
    (y,) = run_model(model, {"x": np.zeros((at["n"], 4, at["h"], at["w"]), np.float32)})
    for dim, actual in zip(found, y.shape, strict=True):
        if shown(dim) is not None:
            assert sympy.sympify(str(dim)).subs(at) == actual


def written(expected):
    """Split at the spaces that are in no brackets and by no operator."""
    words = expected.replace(" + ", "+").replace(" - ", "-").split(" ")
    spaced = [word.replace("+", " + ").replace("-", " - ") for word in words]
    return [None if word == "?" else word for word in spaced]


def test_equal_sizes_of_two_branches_are_equal(build):
    """Two convolutions of one stride on maps of one free size: their outputs can be added."""
    model = build(
        """g (float[n, 4, h, h] x) => (float y) {
            a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)
            b = AveragePool <kernel_shape = [1, 1], strides = [2, 2]> (x) y = Add (a, b) }""",
        w=(4, 4, 3, 3),
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    known = infer(import_graph(model))
    assert known.shapes["a"] == known.shapes["b"] == known.shapes["y"]
    assert known.shapes["a"][2] == known.shapes["a"][3]
