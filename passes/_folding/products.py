# SPDX-License-Identifier: Apache-2.0
"""Channels through the products of attention: queries with keys, probabilities with values."""

import numpy as np

from qhyvit_onnx.graph import Graph, Node, Tensor, is_constant, producer, sole_consumer
from qhyvit_onnx.passes._folding.flow import Product
from qhyvit_onnx.passes._folding.trace import Trace
from qhyvit_onnx.passes._readers import Ids


def product(trace: Trace, node: Node) -> None:
    """Tie what is summed over; let the columns of the right operand through.

    A sum of products keeps its value when one side is divided by what the other is multiplied by.
    Columns of the right operand are columns of the product: values, whatever the probabilities.
    """
    left, right = (trace.ids(tensor) for tensor in node.inputs)
    left_summed = left is not None and left.shape[-1] != 1
    right_summed = right is not None and right.shape[-2] != 1
    if left is not None and right is not None and left_summed and right_summed:
        _contract(trace, node, left, right)
        return
    if left is not None:
        trace.flow.block(left)
    if right is None:
        return
    if right_summed or len(node.inputs[0].shape or ()) > right.ndim:
        trace.flow.block(right)
        return
    # rows of a softmax sum to one: a shift of the values is the same shift of what they make
    whole = _is_softmax(producer(node.inputs[0]))
    trace.give(node.outputs[0], trace.flow.derive(right, 1.0 if whole else None))


def _contract(trace: Trace, node: Node, left: Ids, right: Ids) -> None:
    if left.shape[-2] != 1 or right.shape[-1] != 1 or left.ndim != right.ndim:
        trace.block(node)
        return
    turned = np.swapaxes(right, -1, -2)
    scores = _before_softmax(trace.graph, node.outputs[0])
    trace.flow.tie(left, turned, -1)
    trace.flow.products.append(Product(node, left, turned, scores))
    trace.flow.pin(left)
    if not scores:
        trace.flow.pin(right)


def _before_softmax(graph: Graph, scores: Tensor) -> tuple[str, ...]:
    """Return the tensors from ``scores`` to a softmax that ignores what is constant in each row.

    A shift of the keys adds such a term. Empty when something else sees it.
    """
    found, node = [scores.name], sole_consumer(graph, scores)
    while node is not None and node.op in {"Mul", "Div", "Add"}:
        held = next((tensor for tensor in node.inputs if is_constant(tensor)), None)
        scalar = held is not None and int(np.prod(held.shape)) == 1
        upside_down = node.op == "Div" and is_constant(node.inputs[0])
        if node.op != "Add" and (not scalar or upside_down):
            return ()
        found.append(node.outputs[0].name)
        node = sole_consumer(graph, node.outputs[0])
    return tuple(found) if _is_softmax(node) else ()


def _is_softmax(node: Node | None) -> bool:
    """Tell whether ``node`` is a softmax over the last axis."""
    if node is None or node.op != "Softmax":
        return False
    return node.attrs.get("axis", -1) in (-1, len(node.outputs[0].shape or ()) - 1)
