# SPDX-License-Identifier: Apache-2.0
"""Nodes that do nothing: found from symbolic shapes, and taken out."""

from collections.abc import Callable, Mapping

import numpy as np

from qhyvit_onnx.graph import (
    Graph,
    Node,
    bypass,
    can_redirect,
    cancel_reshapes,
    is_constant,
    is_output,
    operand,
    producer,
    redirect,
    remove_node,
    scalar,
    value,
)
from qhyvit_onnx.symbolic.dims import Shape, is_number
from qhyvit_onnx.symbolic.shapes import Knowledge

Test = Callable[[Node, Knowledge], bool]


def drop_noops(graph: Graph, known: Knowledge) -> int:
    """Take out every node that hands its input on unchanged; return how many."""
    edits = 0
    for node in list(graph.nodes):
        test = TESTS.get(node.op)
        if test is not None and _has_one_output(graph, node) and test(node, known):
            edits += bypass(graph, node)
    edits += cancel_reshapes(graph, known.same_shape)
    return edits + _cancel_transposes(graph) + _drop_expands(graph, known)


def _has_one_output(graph: Graph, node: Node) -> bool:
    """Tell whether only the first output is read (Dropout has a mask)."""
    return bool(node.inputs) and not any(
        out.outputs or is_output(graph, out) for out in node.outputs[1:]
    )


def _always(_node: Node, _known: Knowledge) -> bool:
    return True


def _same_shape(node: Node, known: Knowledge) -> bool:
    return known.same_shape(node.inputs[0], node.outputs[0])


def _same_type(node: Node, known: Knowledge) -> bool:
    elem = known.elems.get(node.inputs[0].name)
    return elem is not None and elem == known.elems.get(node.outputs[0].name)


def _inference(node: Node, _known: Knowledge) -> bool:
    """Dropout: off unless training_mode is given and true."""
    mode = operand(node, 2)
    return mode is None or (scalar(mode) is not None and not scalar(mode))


def _keeps_order(node: Node, known: Knowledge) -> bool:
    """Transpose: the permutation moves only dims of size one past each other, or nothing."""
    perm = node.attrs.get("perm")
    if perm is None:
        return False
    shape = known.shapes.get(node.inputs[0].name)
    if shape is None:
        return bool(perm == sorted(perm))
    wide = [axis for axis in perm if not (is_number(shape[axis]) and shape[axis] == 1)]
    return wide == sorted(wide) and _same_shape(node, known)


def _whole(node: Node, known: Knowledge) -> bool:
    """Slice: nothing is cut off and nothing turned round."""
    steps = operand(node, 4)
    array = None if steps is None else value(steps)
    forward = steps is None or (array is not None and bool(np.all(array == 1)))
    return forward and _same_shape(node, known)


def _single(node: Node, _known: Knowledge) -> bool:
    return len(node.inputs) == 1


def _unpadded(node: Node, _known: Knowledge) -> bool:
    pads = operand(node, 1)
    array = None if pads is None else value(pads)
    return array is not None and not bool(array.any())


def _neutral(number: float) -> Test:
    """Return a test for a second operand that is ``number`` everywhere and adds no dims."""

    def test(node: Node, known: Knowledge) -> bool:
        return scalar(node.inputs[1]) == number and _same_shape(node, known)

    return test


def _swapped(number: float) -> Test:
    """Return the same test for a commutative op: the constant is put second first."""
    test = _neutral(number)

    def either(node: Node, known: Knowledge) -> bool:
        if scalar(node.inputs[0]) == number and not is_constant(node.inputs[1]):
            node.inputs = list(reversed(node.inputs))
        return test(node, known)

    return either


TESTS: Mapping[str, Test] = {
    "Identity": _always,
    "Dropout": _inference,
    "Cast": _same_type,
    "Reshape": _same_shape,
    "Flatten": _same_shape,
    "Squeeze": _same_shape,
    "Unsqueeze": _same_shape,
    "Expand": _same_shape,
    "Slice": _whole,
    "Transpose": _keeps_order,
    "Concat": _single,
    "Sum": _single,
    "Pad": _unpadded,
    "Mul": _swapped(1.0),
    "Add": _swapped(0.0),
    "Div": _neutral(1.0),
    "Sub": _neutral(0.0),
    "Pow": _neutral(1.0),
}


def _cancel_transposes(graph: Graph) -> int:
    """Take out pairs of Transposes of which the second undoes the first."""
    edits = 0
    for node in [node for node in graph.nodes if node.op == "Transpose"]:
        first = producer(node.inputs[0]) if node.inputs else None
        if first is None or first.op != "Transpose" or not _undoes(first, node):
            continue
        old, new = node.outputs[0], first.inputs[0]
        if can_redirect(graph, old, new):
            redirect(graph, old, new)
            remove_node(graph, node)
            edits += 1
    return edits


def _undoes(first: Node, second: Node) -> bool:
    one, two = first.attrs.get("perm"), second.attrs.get("perm")
    return one is not None and two is not None and [one[axis] for axis in two] == sorted(one)


_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Min", "Max"})


def _drop_expands(graph: Graph, known: Knowledge) -> int:
    """Take out an Expand whose readers would spread the values themselves."""
    edits = 0
    for node in [node for node in graph.nodes if node.op == "Expand"]:
        out = node.outputs[0]
        readers = list(out.outputs)
        if readers and not is_output(graph, out) and all(_spreads(r, node, known) for r in readers):
            edits += bypass(graph, node)
    return edits


def _spreads(reader: Node, expand: Node, known: Knowledge) -> bool:
    """Tell whether ``reader`` has another operand of the full shape."""
    out = expand.outputs[0]
    shape: Shape | None = known.shapes.get(out.name)
    others = [tensor for tensor in reader.inputs if tensor is not out]
    return (
        reader.op in _BROADCASTING
        and shape is not None
        and any(known.shapes.get(tensor.name) == shape for tensor in others)
    )
