# SPDX-License-Identifier: Apache-2.0
"""Layers written in the form that onnxruntime has a fast kernel for; the function stays."""

import numpy as np
from onnx import TensorProto

from qhyvit_onnx.composites import find_composites
from qhyvit_onnx.graph import (
    Graph,
    Node,
    axes_of,
    constant,
    fresh,
    make_node,
    operand,
    value,
    variable,
)
from qhyvit_onnx.symbolic.dims import shown
from qhyvit_onnx.symbolic.shapes import Knowledge


def pool_globally(graph: Graph, known: Knowledge, taken: set[str]) -> int:
    """Write means over the whole map as GlobalAveragePool; return how many.

    ReduceMean has no integer kernel and reads maps in NCHW only. A mean inside a norm stays: its
    pattern is looked for again.
    """
    inside = {id(node) for composite in find_composites(graph) for node in composite.nodes}
    means = [node for node in graph.nodes if node.op == "ReduceMean" and id(node) not in inside]
    maps = [node for node in means if _over_the_map(node, known)]
    for node in maps:
        source, out = node.inputs[0], node.outputs[0]
        if not node.attrs.get("keepdims", 1):
            pooled = variable(_name(f"{node.name}.pooled", taken), out)
            pooled.shape = [*map(shown, known.shapes[source.name][:2]), 1, 1]
            node.outputs[0] = pooled
            name = _name(f"{node.name}/flatten", taken)
            graph.nodes.append(make_node("Flatten", name, [pooled], [out], attrs={"axis": 1}))
        node.op, node.inputs, node.attrs = "GlobalAveragePool", [source], {}
    return len(maps)


def _over_the_map(node: Node, known: Knowledge) -> bool:
    """Tell whether ``node`` takes the mean over the last two axes of four."""
    name, axes = node.inputs[0].name, axes_of(node) or []
    shape = known.shapes.get(name, ())
    floats = known.elems.get(name) == TensorProto.FLOAT
    return floats and len(shape) == 4 and sorted(axis % 4 for axis in axes) == [2, 3]


def copy_channels(graph: Graph, taken: set[str]) -> int:
    """Let depthwise convolutions that widen read copies of channels; return how many did.

    One that makes several channels of each has no depthwise kernel: it runs group by group, each
    as a matrix product of one row, in int8 at 11 times the instructions of float (Cortex-A76).
    With its input channels copied it is depthwise, and copying moves whole planes.
    """
    wide = [node for node in graph.nodes if node.op == "Conv" and _copies(node) > 1]
    for node in wide:
        source, copies, group = node.inputs[0], _copies(node), node.attrs["group"]
        channels = np.repeat(np.arange(group, dtype=np.int64), copies)
        picks = constant(_name(f"{node.name}.copies", taken), channels)
        shape = list(source.shape) if source.shape is not None else None
        out = variable(_name(f"{node.name}.input", taken), source)
        if shape is not None:
            out.shape = [shape[0], group * copies, *shape[2:]]
        name = _name(f"{node.name}/copy", taken)
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


def _name(wish: str, taken: set[str]) -> str:
    name = fresh(wish, taken)
    taken.add(name)
    return name
