# SPDX-License-Identifier: Apache-2.0
"""What no unit covers, and why: the nodes that stay float however much is placed."""

from collections.abc import Iterator, Sequence

import numpy as np

from qhyvit_onnx.composites import find_composites
from qhyvit_onnx.graph import MOVEMENT, Graph, Node, is_constant
from qhyvit_onnx.units import UNIT_OPS, Unit

_KERNELLESS = "onnxruntime has no integer kernel"


def kernelless(graph: Graph, units: Sequence[Unit]) -> dict[str, str]:
    """Return, by node name, why each node that computes on floats outside of ``units`` stays float.

    A function that is spelled out in several nodes is told once, at the last of them, as what it
    is: LayerNorm, Gelu.
    """
    covered = {node.name for unit in units for node in unit.nodes}
    found = {}
    for composite in find_composites(graph):
        members = {node.name for node in composite.nodes}
        if not members & covered:
            found[composite.nodes[-1].name] = f"{composite.kind}: {_KERNELLESS}"
            covered |= members
    rest = (node for node in _computing(graph) if node.name not in covered)
    return found | {node.name: _reason(node) for node in rest}


def _computing(graph: Graph) -> Iterator[Node]:
    """Yield the nodes that make floats, in the order of the graph."""
    for node in graph.nodes:
        dtypes = [out.dtype for out in node.outputs if out.dtype is not None]
        if node.op not in MOVEMENT and all(np.issubdtype(dtype, np.floating) for dtype in dtypes):
            yield node


def _reason(node: Node) -> str:
    if node.op not in UNIT_OPS:
        return f"{node.op}: {_KERNELLESS}"
    if any(is_constant(tensor) for tensor in node.inputs):
        return f"{node.op} with a constant: left float"
    return f"{node.op}: not in a form that an integer kernel takes"
