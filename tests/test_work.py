# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds of a node, against loops counted by hand, and shapes at a given input size."""

import pytest

from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.work import is_layer, is_product, multiply_adds, shapes_at, shown_work, total

OPS = {
    # name: (inputs, node, initializers, loops)
    "conv": ("float[1, 3, 8, 8] x", "y = Conv <pads = [1, 1, 1, 1]> (x, w)", {"w": (5, 3, 3, 3)},
             5 * 8 * 8 * 3 * 3 * 3),
    "strided": ("float[1, 4, 8, 8] x", "y = Conv <strides = [2, 2]> (x, w)", {"w": (5, 4, 2, 2)},
                5 * 4 * 4 * 4 * 2 * 2),
    "depthwise": ("float[1, 4, 8, 8] x", "y = Conv <group = 4> (x, w)", {"w": (4, 1, 1, 1)},
                  4 * 8 * 8),
    "transposed": ("float[1, 4, 5, 5] x", "y = ConvTranspose <strides = [2, 2]> (x, w)",
                   {"w": (4, 3, 2, 2)}, 4 * 5 * 5 * 3 * 2 * 2),
    "gemm": ("float[2, 6] x", "y = Gemm <transB = 1> (x, w)", {"w": (7, 6)}, 2 * 7 * 6),
    "turned gemm": ("float[6, 2] x", "y = Gemm <transA = 1> (x, w)", {"w": (6, 7)}, 2 * 7 * 6),
    "matmul": ("float[2, 3, 4] x", "y = MatMul (x, w)", {"w": (4, 5)}, 2 * 3 * 4 * 5),
    "product": ("float[2, 3, 4] x, float[1, 4, 5] w", "y = MatMul (x, w)", {}, 2 * 3 * 4 * 5),
    "vector": ("float[3, 4] x", "y = MatMul (x, w)", {"w": (4,)}, 3 * 4),
    "einsum": ("float[2, 3, 4] x, float[1, 5, 4] w",
               'y = Einsum <equation = "bid, bjd -> bij"> (x, w)', {}, 2 * 3 * 5 * 4),
    "elementwise": ("float[2, 3] x", "y = Relu (x)", {}, 0),
}  # fmt: skip


def graph_of(build, inputs, node, arrays):
    model = build(f"g ({inputs}) => (float y) {{ {node} }}", **arrays)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return import_graph(model)


@pytest.mark.parametrize("case", OPS)
def test_every_loop_is_counted(build, case):
    inputs, node, arrays, loops = OPS[case]
    graph = graph_of(build, inputs, node, arrays)
    assert multiply_adds(graph.nodes[0], shapes_at(graph, {})) == loops
    assert is_layer(graph.nodes[0]) == bool(arrays)
    assert is_product(graph.nodes[0]) == (case in {"product", "einsum"})


@pytest.mark.parametrize(
    ("inputs", "node"),
    [
        ("float[5, 1, 3] x", "y = LSTM <hidden_size = 2> (x, w, r)"),
        ("float[2, 3] x", 'y = Einsum <equation = "ij -> i"> (x)'),
        ("float[2, 3] x", 'y = Einsum <equation = "...i, i -> ..."> (x, v)'),
    ],
)
def test_what_has_no_formula_is_unknown_rather_than_nothing(build, inputs, node):
    graph = graph_of(build, inputs, node, {"w": (1, 8, 3), "r": (1, 8, 2), "v": (3,)})
    assert multiply_adds(graph.nodes[0], shapes_at(graph, {})) is None


FREE = "float[N, 3, H, W] x, float[N, 3, H, W] z"


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (1, 3, None, None)),
        ({"x": (None, 3, 8, 6)}, (1, 3, 8, 6)),
        ({"x": (2, 3, 8, 6)}, (2, 3, 8, 6)),
    ],
)
def test_free_dims_are_as_given_and_a_free_batch_is_one(build, sizes, shape):
    graph = graph_of(build, FREE, "y = Relu (z)", {})
    found = shapes_at(graph, sizes)["y"]
    assert tuple(dim if isinstance(dim, int) else None for dim in found) == shape
    assert graph.inputs[0].shape == ["N", 3, "H", "W"]  # the graph itself stays free


def test_a_sum_with_an_unknown_part_is_unknown():
    assert total([3, 4]) == 7
    assert total([3, None]) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (12_345_678, "12.3 M"),
        (999_600_000, "1.00 G"),
        (None, "?"),
    ],
)
def test_three_digits_are_shown(count, text):
    assert shown_work(count) == text
