# SPDX-License-Identifier: Apache-2.0
"""Chains: every path of movement between two tensors that something computes, and its channels."""

import time

import numpy as np
import pytest

from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.layout import chains
from qhyvit_onnx.layout.chains import analyse
from qhyvit_onnx.layout.roles import Role, RoleKind


def ends(layout):
    return [(chain.source, chain.end, len(chain.nodes)) for chain in layout.chains]


def test_a_chain_ends_wherever_something_computes(layout):
    nodes = """a = Transpose <perm = [0, 2, 1]> (s) b = Unsqueeze (a, k) r = Relu (a)
               y = Squeeze (b, k)"""
    found = layout("n, 4, 6", nodes, k=np.int64([0]))
    assert ends(found) == [("s", "a", 1), ("s", "y", 3)]


def test_reading_the_shape_is_not_computing(layout):
    nodes = (
        "a = Transpose <perm = [0, 2, 1]> (s) d = Shape (a) y = Transpose <perm = [0, 2, 1]> (a)"
    )
    assert ends(layout("n, 4, 6", nodes)) == [("s", "y", 2)]


def test_shape_arithmetic_is_no_chain(layout):
    nodes = """d = Shape (s) e = Gather (d, zero) f = Concat <axis = 0> (e, rest)
               y = Reshape (s, f)"""
    found = layout("n, 4, 6", nodes, zero=np.int64([0]), rest=np.int64([-1]))
    assert ends(found) == [("s", "y", 1)]
    assert len(found.moves) == 1
    assert found.misses == {}


def test_a_node_without_a_map_ends_a_chain_and_starts_another(layout):
    nodes = """a = Transpose <perm = [0, 2, 1]> (s) b = GatherElements (a, i)
               y = Transpose <perm = [0, 2, 1]> (b)"""
    found = layout("2, 4, 6", nodes, i=np.zeros((2, 6, 4), np.int64))
    assert ends(found) == [("s", "a", 1), ("b", "y", 1)]
    assert found.misses == {"GatherElements: every element has an index of its own": 1}
    assert found.chains[1].channel == Role(RoleKind.MIXED)  # nobody knows its channels


def test_too_many_paths_are_cut_and_said(layout, monkeypatch):
    monkeypatch.setattr(chains, "LARGEST", 10)
    doubled = "a0 = Concat <axis = 1> (s, s)"
    for k in range(4):
        doubled += f" a{k + 1} = Concat <axis = 1> (a{k}, a{k})"
    found = layout("n, 1, 2", doubled + " y = Relu (a4)")
    assert len(found.chains) == 10
    assert found.misses == {"chains after the first 10 not followed": 1}


CHANNELS = {
    "conv": ("m = Conv (s, w)", {"w": (5, 4, 1, 1)}, 1),
    "matmul": ("m = MatMul (s, v)", {"v": (6, 3)}, 3),
    "conv, relu": ("c = Conv (s, w) m = Relu (c)", {"w": (5, 4, 1, 1)}, 1),
    "linear with bias": ("c = MatMul (s, v) m = Add (c, b)", {"v": (6, 3), "b": (3,)}, 3),
    "conv in nhwc": (
        "c = Conv (s, w) t = Transpose <perm = [0, 2, 3, 1]> (c) m = Relu (t)",
        {"w": (5, 4, 1, 1)}, 3,
    ),
    "gate": ("c = Conv (s, w) g = GlobalAveragePool (c) h = Sigmoid (g) m = Mul (h, c)",
             {"w": (5, 4, 1, 1)}, 1),
    "norm by hand": ("g = InstanceNormalization (s, a, a) m = Relu (g)", {"a": (4,)}, 1),
    "layer norm": ("m = LayerNormalization (s, a, a)", {"a": (6,)}, 3),
    "channel gain": ("m = Mul (s, a)", {"a": (4, 1, 1)}, 1),
    "mean over space": ("c = Conv (s, w) m = ReduceMean (c, axes)",
                        {"w": (5, 4, 1, 1), "axes": np.int64([2, 3])}, 1),
    "unknown": ("m = Relu (s)", {}, None),
    "scalar gain": ("m = Mul (s, a)", {"a": np.float32(2)}, None),
    "a gain for each pixel": ("m = Mul (s, a)", {"a": (5, 6)}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANNELS)
def test_channel_axes(layout, case):
    nodes, arrays, axis = CHANNELS[case]
    found = layout("n, 4, 5, 6", nodes + " y = Transpose (m)", **arrays)
    channel = next(chain.channel for chain in found.chains if chain.source == "m")
    expected = Role(RoleKind.MIXED) if axis is None else Role(RoleKind.WHOLE, (3 - axis,))
    assert channel == expected


def test_the_graph_is_not_changed(build):
    model = build(
        """g (float[n, 4, 6] x) => (float[n, 6, 4] y)
            { s = Neg (x) y = Transpose <perm = [0, 2, 1]> (s) }"""
    )
    graph = import_graph(model)
    first = analyse(graph)
    second = analyse(graph)
    assert ends(first) == ends(second) == [("s", "y", 1)]
    assert [node.op for node in graph.nodes] == ["Neg", "Transpose"]


def test_speed(layout):
    """Ninety blocks of window attention, about 700 nodes: far below what a pass may take."""
    block = """ a{k} = Reshape (t{k}, six) b{k} = Transpose <perm = [0, 1, 3, 2, 4, 5]> (a{k})
        c{k} = Reshape (b{k}, tokens) d{k} = Relu (c{k}) e{k} = Reshape (d{k}, windows)
        f{k} = Transpose <perm = [0, 1, 3, 2, 4, 5]> (e{k}) g{k} = Reshape (f{k}, map)
        t{n} = Relu (g{k})"""
    nodes = "t0 = Relu (s)" + "".join(block.format(k=k, n=k + 1) for k in range(90))
    start = time.process_time()
    found = layout(
        "n, 14, 14, 16", nodes + " y = Identity (t90)", tokens=np.int64([-1, 49, 16]),
        six=np.int64([-1, 2, 7, 2, 7, 16]), windows=np.int64([-1, 2, 2, 7, 7, 16]),
        map=np.int64([-1, 14, 14, 16]),
    )  # fmt: skip
    assert len(found.chains) == 181
    assert time.process_time() - start < 5  # about 0.6 s; the bound only catches an explosion
