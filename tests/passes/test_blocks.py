# SPDX-License-Identifier: Apache-2.0
"""Where a network is cut into blocks."""

from itertools import pairwise

import numpy as np
import pytest

from qhyvit_onnx.kernels.program import Program, Step
from qhyvit_onnx.passes._blocks import LARGEST, Cutter


def program(*steps, outputs=("y",)):
    """Return a program of steps written as ``out = in in``; all of one op."""
    made = []
    for text in steps:
        out, ins = text.split("=")
        made.append(
            Step(name=out.strip(), op="Add", inputs=tuple(ins.split()), outputs=(out.strip(),))
        )
    return Program(
        steps=tuple(made), constants={"w": np.ones(1)}, inputs=("x",), outputs=outputs, opset=17
    )


def cut(body, layers, *, portable=None, fixed=(), whole=()):
    names = body.names() - {"w"}
    return Cutter(
        body,
        {i: step.name for i, step in enumerate(body.steps) if step.name in layers},
        names if portable is None else portable,
        fixed,
        body.outputs,
        whole,
    ).spans()


CHAIN = program("a = x w", "b = a w", "c = b w", "d = c w", "e = d w", "y = e w")


def test_a_chain_is_cut_between_pairs_of_layers():
    spans = cut(CHAIN, set("abcdey"))
    assert [(s.first, s.last) for s in spans] == [(0, 1), (2, 3), (4, 5)]
    assert [s.layers for s in spans] == [("a", "b"), ("c", "d"), ("e", "y")]
    assert [s.inputs for s in spans] == [("x",), ("b",), ("d",)]
    assert [s.outputs for s in spans] == [("b",), ("d",), ("y",)]


def test_blocks_together_are_the_program():
    for layers in ("y", "a", "cd", "", "abcdey"):
        spans = cut(CHAIN, set(layers))
        assert spans[0].first == 0
        assert spans[-1].last == 5
        assert all(a.last + 1 == b.first for a, b in pairwise(spans))
        assert sorted(name for s in spans for name in s.layers) == sorted(layers)


def test_what_has_no_layer_joins_another():
    spans = cut(CHAIN, {"c", "d"})
    assert [s.layers for s in spans] == [("c", "d")]


def test_no_cut_inside_a_residual_while_the_block_is_small():
    net = program("a = x w", "b = a w", "c = b w", "d = c a", "e = d w", "y = e w")
    spans = cut(net, set("abcey"))
    assert [(s.first, s.last) for s in spans] == [(0, 3), (4, 5)]


def test_a_large_block_is_cut_where_two_tensors_pass():
    body = [f"l{i} = {'l' + str(i - 1) if i else 'a'} w" for i in range(LARGEST + 2)]
    net = program("z = x w", "a = z w", *body, f"y = l{LARGEST + 1} a")
    spans = cut(net, {"z", "a", *(f"l{i}" for i in range(LARGEST + 2))})
    assert len(spans) > 2
    assert "a" in spans[-1].inputs  # it passed the blocks between


@pytest.mark.parametrize("kind", ["portable", "whole"])
def test_no_cut_where_it_is_forbidden(kind):
    if kind == "portable":
        spans = cut(CHAIN, set("abcdey"), portable=set("acdexy"))
    else:
        spans = cut(CHAIN, set("abcdey"), whole=[(1, 3)])
    assert 1 not in {s.last for s in spans}


def test_what_never_changes_passes_any_cut():
    net = program("k = w w", "a = x w", "b = a w", "c = b k", "y = c w")
    assert cut(net, set("abcy"))[0].layers == ("a", "b", "c")
    spans = cut(net, set("abcy"), fixed={"k"})
    assert [s.layers for s in spans] == [("a", "b"), ("c", "y")]
    assert "k" in spans[1].inputs
    assert "k" not in spans[0].outputs
