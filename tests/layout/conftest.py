# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the map of a few nodes from ``s``, which a Neg writes, to ``y``."""

import pytest

from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.layout.chains import analyse


@pytest.fixture
def layout(build):
    """Return a function: (dims of x, nodes, initializers) -> Layout; opset 18."""

    def make(dims, nodes, **arrays):
        text = '<ir_version: 8, opset_import: ["": 18]>\n'
        text += f"g (float[{dims}] x) => (float y) {{ s = Neg (x) {nodes} }}"
        model = build(text, **arrays)
        model.graph.output[0].type.tensor_type.ClearField("shape")
        return analyse(import_graph(model))

    return make


@pytest.fixture
def index_map(layout):
    """Return a function like ``layout`` that gives the map of the one chain from s to y."""

    def make(dims, nodes, **arrays):
        found = layout(dims, nodes, **arrays)
        (chain,) = (c for c in found.chains if (c.source, c.end) == ("s", "y"))
        return chain.map

    return make
