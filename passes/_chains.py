# SPDX-License-Identifier: Apache-2.0
"""End chains of shape arithmetic: what is known becomes an initializer, one free element a -1."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qhyvit_onnx.graph import Graph, Node, Tensor, constant, fresh, is_constant, is_output, operand
from qhyvit_onnx.symbolic.call import Value
from qhyvit_onnx.symbolic.dims import Shape, count, is_number, quotient
from qhyvit_onnx.symbolic.shapes import Knowledge


def end_chains(graph: Graph, known: Knowledge, taken: set[str]) -> int:
    """Write constants where the run-time arithmetic is known; return the number of edits."""
    edits = sum(_make_constant(graph, node, known, taken) for node in list(graph.nodes))
    return edits + sum(_free_target(node, known, taken) for node in graph.nodes)


def _numbers(known: Knowledge, tensor: Tensor) -> Value | None:
    """Return the value of a computed tensor without symbols."""
    array = None if is_constant(tensor) else known.values.get(tensor.name)
    return None if array is None or array.dtype == object else array


def _make_constant(graph: Graph, node: Node, known: Knowledge, taken: set[str]) -> int:
    """Give every reader of a known output that is itself not known an initializer instead."""
    out = node.outputs[0]
    array = _numbers(known, out)
    if array is None or is_output(graph, out):
        return 0
    readers = [reader for reader in out.outputs if not _is_known(graph, reader, known)]
    if not readers:
        return 0
    made = _constant(out.name, array, taken)
    for reader in readers:
        reader.inputs = [made if tensor is out else tensor for tensor in reader.inputs]
    return 1


def _is_known(graph: Graph, node: Node, known: Knowledge) -> bool:
    """Tell whether ``node`` will go anyway, because its only output is known."""
    out = node.outputs[0]
    return len(node.outputs) == 1 and _numbers(known, out) is not None and not is_output(graph, out)


def _constant(name: str, array: Value, taken: set[str]) -> Tensor:
    name = fresh(f"{name}.known", taken)
    taken.add(name)
    return constant(name, array)


def _free_target(node: Node, known: Knowledge, taken: set[str]) -> int:
    """Replace the computed target of a Reshape or Expand by a constant that says the same."""
    index, rule = TARGETS.get(node.op, (0, None))
    target = operand(node, index) if rule else None
    if rule is None or target is None or is_constant(target):
        return 0
    array, source = known.values.get(target.name), known.shapes.get(node.inputs[0].name)
    if array is None or array.dtype != object or array.ndim != 1:
        return 0
    written = rule(node, list(array), source)
    if written is None:
        return 0
    made = _constant(target.name, written, taken)
    node.inputs = [made if i == index else tensor for i, tensor in enumerate(node.inputs)]
    return 1


def _reshape_target(node: Node, target: list[Any], source: Shape | None) -> Value | None:
    """Return ``target`` with its one free element as -1; free ones that copy their dim as 0.

    The element count decides what -1 stands for, because the target it replaces had to agree with
    it: no run of the model can tell the two apart.
    """
    target = _without_minus_one(target, source)
    free = [i for i, item in enumerate(target) if not is_number(item)]
    inferred = [i for i, item in enumerate(target) if is_number(item) and item == -1]
    literal = bool(node.attrs.get("allowzero", 0))
    if len(free + inferred) > 1 and source is not None and not literal:
        copies = [i for i in free if i < len(source) and source[i] == target[i]]
        target = [0 if i in copies else item for i, item in enumerate(target)]
        free = [i for i in free if i not in copies]
    if len(free + inferred) > 1 or (free and literal and 0 in target):
        return None
    return np.array([-1 if i in free else item for i, item in enumerate(target)], dtype=np.int64)


def _without_minus_one(target: list[Any], source: Shape | None) -> list[Any]:
    """Return ``target`` with a -1 next to free elements worked out, where it is a number."""
    at = [i for i, item in enumerate(target) if is_number(item) and item == -1]
    if len(at) != 1 or source is None:
        return target
    rest = [source[i] if is_number(item) and item == 0 and i < len(source) else item
            for i, item in enumerate(target) if i != at[0]]  # fmt: skip
    if not all(is_number(item) or item.is_positive for item in rest):
        return target
    ratio = quotient(count(source), count(tuple(rest)))
    if ratio is None or not is_number(ratio):
        return target
    return [ratio if i == at[0] else item for i, item in enumerate(target)]


def _expand_target(_node: Node, target: list[Any], source: Shape | None) -> Value | None:
    """Return ``target`` with 1 where the input has that size already: 1 keeps it."""
    if source is None:
        return None
    shift = len(target) - len(source)
    for i, item in enumerate(target):
        if not is_number(item):
            if i < shift or source[i - shift] != item:
                return None
            target[i] = 1
    return np.array(target, dtype=np.int64)


TARGETS: Mapping[str, tuple[int, Callable[[Node, list[Any], Shape | None], Value | None]]] = {
    "Reshape": (1, _reshape_target),
    "Expand": (1, _expand_target),
}
"""By op: which input is the target, and how it is written without symbols."""
