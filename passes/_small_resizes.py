# SPDX-License-Identifier: Apache-2.0
"""Small maps are resized by a product with a constant matrix: 2 to 5 times fewer instructions."""

from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from qhyvit_onnx.graph import (
    Graph,
    Node,
    constant,
    fresh,
    is_constant,
    make_node,
    names,
    node_proto,
    operand,
    value,
    variable,
)
from qhyvit_onnx.runtime import Options, Session

PIXELS = 64
"""Maps of at most so many pixels. Interpolating takes onnxruntime 27 instructions an element on an
emulated Cortex-A76, a product 0.3 for each pixel read."""

_RANK, _SIZES = 4, 3
"""Of a map; index of the operand ``sizes``."""


def multiply_resizes(graph: Graph) -> int:
    """Write each Resize of a small map as Reshape, MatMul, Reshape; return how many.

    Exact but for the order of sums: interpolation is linear in the pixels, whatever its mode, and
    onnxruntime itself says with which factors.
    """
    taken, found = names(graph), 0
    for node in [node for node in graph.nodes if _is_small(node)]:
        source, out = node.inputs[0], node.outputs[0]
        maps = _resized(graph, node)
        matrix, channels = maps.reshape(len(maps), -1), int(source.shape[1])

        def named(wanted: str) -> str:
            name = fresh(wanted, taken)
            taken.add(name)
            return name

        shapes = [
            constant(named(f"{out.name}.shape"), np.array(shape, np.int64))
            for shape in ((0, channels, len(maps)), (0, channels, *maps.shape[2:]))
        ]
        factors = constant(named(f"{out.name}.factors"), matrix)
        flat = variable(named(f"{out.name}.read"), dtype=np.float32)
        product = variable(named(f"{out.name}.resized"), dtype=np.float32)
        node.inputs.clear()
        node.outputs.clear()
        graph.nodes.extend([
            make_node("Reshape", named(f"{node.name}/flat"), [source, shapes[0]], [flat]),
            make_node("MatMul", node.name, [flat, factors], [product]),
            make_node("Reshape", named(f"{node.name}/map"), [product, shapes[1]], [out]),
        ])  # fmt: skip
        found += 1
    return found


def _is_small(node: Node) -> bool:
    """Tell whether ``node`` interpolates maps of few pixels, all sizes known."""
    if node.op != "Resize" or node.attrs.get("mode", "nearest") == "nearest":
        return False
    if not all(is_constant(tensor) for tensor in node.inputs[1:] if tensor.name):
        return False
    source = node.inputs[0]
    shape = tuple(source.shape or ())
    known = len(shape) == _RANK and all(isinstance(size, int) for size in shape[1:])
    small = known and 0 < prod(shape[2:]) <= PIXELS
    floats = source.dtype is None or source.dtype == np.float32
    return small and floats and _keeps_channels(node, shape[1])


def _keeps_channels(node: Node, channels: int) -> bool:
    """Tell whether ``node`` names all four axes, and leaves samples and channels alone."""
    scales, sizes = (operand(node, index) for index in (_SIZES - 1, _SIZES))
    if sizes is not None:
        found = value(sizes)
        return found is not None and found.size == _RANK and found[1] == channels
    found = None if scales is None else value(scales)
    return found is not None and found.size == _RANK and tuple(found[:2]) == (1.0, 1.0)


def _resized(graph: Graph, node: Node) -> NDArray[np.float32]:
    """Return what ``node`` makes of maps in which one pixel is 1, another in each: (P, 1, H, W)."""
    size = tuple(node.inputs[0].shape[2:])
    pixels = prod(size)
    given = {t.name: np.asarray(value(t)) for t in node.inputs[1:] if t.name}
    if (sizes := operand(node, _SIZES)) is not None:
        given[sizes.name] = np.array([pixels, 1, *given[sizes.name][2:]], np.int64)
    proto = node_proto(node)
    read, written = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in (proto.input[0], proto.output[0])
    )
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in given.items()]
    body = helper.make_graph([proto], "resize", [read], [written], weights)
    imports = [helper.make_opsetid("", graph.opset)]
    one_each = np.eye(pixels, dtype=np.float32).reshape(pixels, 1, *size)
    model = helper.make_model(body, opset_imports=imports, ir_version=10)
    found = Session(model, Options(threads=1)).run({proto.input[0]: one_each})
    return np.asarray(found[proto.output[0]], np.float32)
