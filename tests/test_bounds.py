# SPDX-License-Identifier: Apache-2.0
"""Relu and Clip as bounds; what is computed at run time is none."""

import pytest

from qhyvit_onnx.bounds import bounds_of
from qhyvit_onnx.graph import import_graph

INF = float("inf")


@pytest.mark.parametrize(
    ("body", "bounds"),
    [
        ("y = Relu (x)", (0.0, INF)),
        ("y = Clip (x, zero, six)", (0.0, 6.0)),
        ("y = Clip (x, zero)", (0.0, INF)),
        ("y = Clip (x, , six)", (-INF, 6.0)),
        ("y = Clip (x)", (-INF, INF)),
        ("l = ReduceMin (x) y = Clip (x, l, six)", None),
        ("y = Clip (x, pair)", None),
        ("y = Tanh (x)", None),
        ("y = LeakyRelu (x)", None),
    ],
)
def test_bounds(build, body, bounds):
    arrays = {"zero": 0.0, "six": 6.0, "pair": [0.0, 1.0]}
    given = {name: number for name, number in arrays.items() if name in body}
    graph = import_graph(build(f"g (float[2, 4] x) => (float[2, 4] y) {{ {body} }}", **given))
    assert bounds_of(graph.nodes[-1]) == bounds
