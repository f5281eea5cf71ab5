# SPDX-License-Identifier: Apache-2.0
"""One node at a time: what is mapped, what is refused and why, what is no movement at all."""

import numpy as np
import pytest

from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.layout.moves import moves_of
from qhyvit_onnx.pattern import Miss
from qhyvit_onnx.symbolic.shapes import infer

I = np.int64  # noqa: E741


@pytest.fixture
def moves(build):
    """Return a function: (node, its constants) -> moves_of it; ``x`` is (n, 4, h, 6)."""

    def make(node, opset=18, dims="n, 4, h, 6", **arrays):
        text = f"""<ir_version: 8, opset_import: ["": {opset}]>
            g (float[{dims}] x, int64[2] k, int64[n, 4, h, 6] full) => (float y) {{ {node} }}"""
        model = build(text, **arrays)
        model.graph.output[0].type.tensor_type.ClearField("shape")
        graph = import_graph(model)
        return moves_of(graph.nodes[0], infer(graph))

    return make


@pytest.mark.parametrize(
    ("node", "arrays", "reason"),
    [
        ("y = Gather <axis = 1> (x, k)", {}, "Gather: indices are computed from data"),
        ("y = GatherElements (x, full)", {}, "GatherElements: every element has an index"),
        ("y = Reshape (x, k)", {}, None),
        ("y = Slice (x, k, k)", {}, "Slice: starts are computed from data"),
        ("y = Slice (x, a, b, c)", {"a": I([-2]), "b": I([9]), "c": I([2])},
         "Slice: where it starts depends on free dims"),
        ("y = Gather <axis = 2> (x, a)", {"a": I([1, -1, 5])},
         "Gather: indices from both ends of an axis of free size"),
        ("y = Pad <mode = \"reflect\"> (x, a)", {"a": I([0, 0, 1, 0, 0, 0, 1, 0])},
         "Pad: mode reflect along an axis of free size"),
        ("y = Expand (x, a)", {"a": I([2, 4, 1, 6])},
         "Expand: whether axis 0 grows depends on free dims"),
        ("y = Dropout (x, r, t)", {"r": np.float32(0.5), "t": np.bool_(True)},  # noqa: FBT003
         "Dropout: training mode"),
        ("y = Slice (x, a, b, c)", {"a": I([2]), "b": I([2]), "c": I([1])},
         "Slice: output has no elements"),
    ],
)  # fmt: skip
def test_refusals(moves, node, arrays, reason):
    found = moves(node, **arrays)
    if reason is None:  # a shape that is computed is no obstacle: it has symbols of its own
        assert len(found) == 1
        return
    assert isinstance(found, Miss)
    assert found.reason.startswith(reason)
    assert found.node


@pytest.mark.parametrize(
    "node",
    [
        "y = Relu (x)", "y = Conv (x, w)", "y = MaxPool <kernel_shape = [1, 1]> (x)",
        "y = Resize (x, , s)", "y = Cast <to = 10> (x)", "y = ReduceMean (x)",
    ],
)  # fmt: skip
def test_no_movement(moves, node):
    arrays = {"w": (4, 4, 1, 1)} if "w)" in node else {}
    arrays |= {"s": np.float32([1, 1, 2, 2])} if "s)" in node else {}
    assert moves(node, **arrays) == ()


def test_constants_do_not_move(moves):
    found = moves("y = Concat <axis = 0> (w, x)", dims="n, 4, 5, 6", w=(1, 4, 5, 6))
    assert [(move.input, move.output) for move in found] == [("x", "y")]
    assert moves("y = Transpose (w)", w=(2, 3)) == ()


def test_every_pair_of_a_split(moves):
    found = moves("y, a, b = Split <axis = 1> (x, sizes)", sizes=I([1, 2, 1]))
    assert [move.output for move in found] == ["y", "a", "b"]
    channels = [move.map.pull(np.arange(4).reshape(1, 4, 1, 1), -1).reshape(-1) for move in found]
    assert [part.tolist() for part in channels] == [[0], [1, 2], [3]]


def test_split_without_sizes(moves):
    found = moves("y, a = Split <axis = 1, num_outputs = 2> (x)")
    assert [move.map.shape[1] for move in found] == [2, 2]


def test_split_of_an_output_nobody_wants(moves):
    found = moves("y, , b = Split <axis = 1> (x, sizes)", sizes=I([1, 2, 1]))
    assert [move.output for move in found] == ["y", "b"]


def test_one_tensor_twice(moves):
    found = moves("y = Concat <axis = 1> (x, x)")
    starts = [int(np.argmax(m.map.pull(np.arange(4).reshape(1, 4, 1, 1), -1) == 0)) for m in found]
    assert starts == [0, 4]


def test_attributes_of_older_opsets(moves):
    (found,) = moves("y = Slice <starts = [1], ends = [3], axes = [1]> (x)", opset=9)
    assert found.map.shape[1] == 2
    found = moves("y, a = Split <axis = 1, split = [1, 3]> (x)", opset=11)
    assert [move.map.shape[1] for move in found] == [1, 3]
    (found,) = moves("y = Unsqueeze <axes = [0]> (x)", opset=11)
    assert found.map.alone(1) == 2


def test_reshape_by_a_computed_shape_proves_nothing_it_cannot(moves):
    (found,) = moves("y = Reshape (x, k)")
    assert all(found.map.role(axis).kind in {"mixed", "merged"} for axis in range(4))
