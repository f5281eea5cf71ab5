# SPDX-License-Identifier: Apache-2.0
"""Tensors that only an activation function reads: what it does not tell apart needs no codes."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from qhyvit_onnx.composites import find_composites
from qhyvit_onnx.graph import Graph, Node, is_output
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.kernels.tails import FUNCTIONS, alive

SHARE = 0.25
"""Of a step: what the function may vary by beyond the ends of a range. Rounding errs by 0.29."""


def functions(graph: Graph) -> dict[str, str]:
    """Return by tensor the activation function that is all that reads it."""
    whole = {id(node): found for found in _activations(graph) for node in found[1]}
    told = {}
    for tensor in graph.tensors().values():
        held = [whole.get(id(node)) for node in tensor.outputs]
        if held and held[0] is not None and all(item is held[0] for item in held):
            inside = any(tensor is out for node in held[0][1] for out in node.outputs)
            if not inside and not is_output(graph, tensor):
                told[tensor.name] = held[0][0]
    return told


def cut(seen: TensorStats, function: str, bits: int) -> TensorStats:
    """Return statistics of a tensor that was clipped to where ``function`` is not flat."""
    low, high = alive(FUNCTIONS[function], seen.low, seen.high, SHARE / ((1 << bits) - 1))
    return replace(
        seen,
        low=max(seen.low, low),
        high=min(seen.high, high),
        centers=np.clip(seen.centers, low, high),
    )


def _activations(graph: Graph) -> Iterator[tuple[str, tuple[Node, ...]]]:
    """Yield activation functions, those in several nodes first, with their nodes."""
    composed = [item for item in find_composites(graph) if item.kind in FUNCTIONS]
    inside = {id(node) for item in composed for node in item.nodes}
    for item in composed:
        yield item.kind, item.nodes
    for node in graph.nodes:
        if node.op in FUNCTIONS and id(node) not in inside:
            yield node.op, (node,)
