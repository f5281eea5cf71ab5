# SPDX-License-Identifier: Apache-2.0
"""Layers written in the form that onnxruntime has a fast kernel for; the function stays."""

import numpy as np

from qhyvit_onnx.graph import Graph, Node, constant, fresh, make_node, operand, value, variable


def copy_channels(graph: Graph, taken: set[str]) -> int:
    """Let depthwise convolutions that widen read copies of channels; return how many did.

    One that makes several channels of each has no depthwise kernel: it runs group by group, each
    as a matrix product of one row, in int8 at 11 times the instructions of float (Cortex-A76).
    With its input channels copied it is depthwise, and copying moves whole planes.
    """
    wide = [node for node in graph.nodes if node.op == "Conv" and _copies(node) > 1]
    for node in wide:
        source, copies, group = node.inputs[0], _copies(node), node.attrs["group"]
        picks = constant(
            fresh(f"{node.name}.copies", taken), np.repeat(np.arange(group, dtype=np.int64), copies)
        )
        shape = list(source.shape) if source.shape is not None else None
        out = variable(fresh(f"{node.name}.input", taken), source)
        if shape is not None:
            out.shape = [shape[0], group * copies, *shape[2:]]
        name = fresh(f"{node.name}/copy", taken)
        taken.update((picks.name, out.name, name))
        graph.nodes.append(make_node("Gather", name, [source, picks], [out], attrs={"axis": 1}))
        node.inputs[0] = out
        node.attrs["group"] = group * copies
    return len(wide)


def _copies(node: Node) -> int:
    """Return how many channels a depthwise convolution makes of each; 0 if it is none."""
    weight, group = value(operand(node, 1)), node.attrs.get("group", 1)
    if weight is None or group == 1 or weight.shape[1] != 1:
        return 0
    return int(weight.shape[0] // group)
