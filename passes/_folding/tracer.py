# SPDX-License-Identifier: Apache-2.0
"""Follows the channels of every tensor through a graph: one rule an op.

An op without a rule gives nothing back: what it reads may be neither scaled nor shifted.
"""

from collections.abc import Callable, Mapping

from qhyvit_onnx.graph import LINEAR, Graph, Node
from qhyvit_onnx.passes._folding.flow import Flow
from qhyvit_onnx.passes._folding.layers import layer_norm, linear
from qhyvit_onnx.passes._folding.movement import move
from qhyvit_onnx.passes._folding.trace import Trace
from qhyvit_onnx.passes._folding.values import add, grid, multiply, positive, reduce
from qhyvit_onnx.passes._readers import Moves

RULES: Mapping[str, Callable[[Trace, Node], None]] = {
    **dict.fromkeys(LINEAR, linear),
    "LayerNormalization": layer_norm,
    **dict.fromkeys(
        ("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "Resize"), grid
    ),
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu"), positive),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), reduce),
    **dict.fromkeys(("Add", "Sub"), add),
    **dict.fromkeys(("Mul", "Div"), multiply),
    **dict.fromkeys(("Shape", "Size"), lambda _trace, _node: None),  # they read no element
}


def trace(graph: Graph, moves: Moves) -> Flow:
    """Return the channels of ``graph``, whose nodes are sorted."""
    held = Trace(graph, moves)
    for node in graph.nodes:
        if id(node) in held.done:
            continue
        if node.name in moves:
            move(held, node)
        else:
            held.lose(node.inputs)
            RULES.get(node.op, Trace.block)(held, node)
    _block_what_leaves(held)
    return held.flow


def _block_what_leaves(held: Trace) -> None:
    """Keep what the user gets, and what control flow reads, as it is."""
    inside = {id(node) for node in held.graph.nodes}
    outputs = {id(tensor) for tensor in held.graph.outputs}
    for tensor in held.graph.tensors().values():
        hidden = any(id(node) not in inside for node in tensor.outputs)
        if hidden or id(tensor) in outputs:
            held.lose([tensor])
            if (ids := held.ids(tensor)) is not None:
                held.flow.block(ids)
