# SPDX-License-Identifier: Apache-2.0
"""Small maps are resized by a product with a constant matrix: 2 to 5 times fewer instructions."""

from dataclasses import replace
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
from qhyvit_onnx.grid import WeightGrid
from qhyvit_onnx.passes._forms import Forms
from qhyvit_onnx.runtime import Options, Session
from qhyvit_onnx.units import Kind, Unit

PIXELS = 64
"""Maps of at most so many pixels. Interpolating takes onnxruntime 27 instructions an element on an
emulated Cortex-A76, a product 0.3 for each pixel read."""

_RANK, _SIZES = 4, 3
"""Of a map; index of the operand ``sizes``."""

_LIMIT = 127
"""Largest code of a factor, and most that two neighbouring ones sum to: with more, kernels that add
pairs of products in 16 bits would saturate."""


def multiply_resizes(graph: Graph, forms: Forms) -> Forms:
    """Write each Resize of a small map as Reshape, MatMul, Reshape.

    Exact but for the order of sums: interpolation is linear in the pixels, whatever its mode, and
    onnxruntime itself says with which factors. Between codes and codes it is a product of integers,
    the factors rounded to 8 bits.
    """
    units, weights, carried = list(forms.chosen), dict(forms.grids.weights), dict(forms.carried)
    small = [node for node in graph.nodes if _is_small(node)]
    for node in small:
        source, out = node.inputs[0], node.outputs[0]
        unit = _product(graph, node)
        if {source.name, out.name} <= carried.keys():
            units.append(unit)
            weights[unit.name] = _grid(np.asarray(value(unit.weight)))
            carried[unit.inputs[0].name] = carried[source.name]
            carried[unit.output.name] = carried[out.name]
    grids = replace(forms.grids, weights=weights)
    return replace(
        forms, chosen=units, grids=grids, carried=carried, count=forms.count + len(small)
    )


def _grid(factors: NDArray[np.float32]) -> WeightGrid:
    """Return the grid of ``factors``, a scale for each pixel written."""
    size = np.abs(factors)
    pairs = size + np.vstack([size[1:], np.zeros_like(size[:1])])
    return WeightGrid(pairs.max(axis=0) / np.float32(_LIMIT - 1), 1, _LIMIT)  # 1 for rounding


def _product(graph: Graph, node: Node) -> Unit:
    """Put a product in the place of ``node``."""
    source, out = node.inputs[0], node.outputs[0]
    maps, channels, taken = _resized(graph, node), int(source.shape[1]), names(graph)
    read = variable(fresh(f"{out.name}.pixels", taken), dtype=np.float32)
    read.shape = [source.shape[0], channels, len(maps)]
    made = variable(fresh(f"{out.name}.resized", taken), dtype=np.float32)
    factors = constant(fresh(f"{out.name}.factors", taken), maps.reshape(len(maps), -1))
    flat, whole = (
        constant(fresh(f"{out.name}.{name}", taken), np.array([0, channels, *size], np.int64))
        for name, size in (("flat", [len(maps)]), ("map", maps.shape[2:]))
    )
    node.inputs.clear()
    node.outputs.clear()
    product = make_node("MatMul", str(node.name), [read, factors], [made])
    graph.nodes.extend([
        make_node("Reshape", fresh(f"{node.name}/flat", taken), [source, flat], [read]),
        product,
        make_node("Reshape", fresh(f"{node.name}/map", taken), [made, whole], [out]),
    ])  # fmt: skip
    return Unit(Kind.MATMUL, (product,), (read,), made, factors)


def _is_small(node: Node) -> bool:
    """Tell whether ``node`` interpolates maps of few pixels, all sizes known."""
    if node.op != "Resize" or node.attrs.get("mode", "nearest") == "nearest":
        return False
    crops = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if crops or "axes" in node.attrs:  # with a crop, what lies outside is a number of its own
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
