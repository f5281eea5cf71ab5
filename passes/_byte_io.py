# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs as bytes: the first Q and the last DQ are left to the caller."""

from dataclasses import replace

import numpy as np

from qhyvit_onnx.graph import Graph, Node, Tensor, fresh, names, producer, value
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.interface import BYTES, Interface, Pixels
from qhyvit_onnx.passes._forms import Forms


def carry_ends(graph: Graph, forms: Forms, pixels: Pixels | None) -> Forms:
    """Carry float inputs and what integer kernels put out as codes, wherever a grid is known.

    An input that no unit reads has none, unless it holds pixels, which are bytes already.
    """
    carried, grids = dict(forms.carried), dict(forms.grids.activations)
    inputs = [tensor for tensor in graph.inputs if tensor.dtype == np.float32]
    if pixels is not None:
        grids[pixels.name] = BYTES
    outside = frozenset(tensor.name for tensor in inputs if tensor.name in grids)
    integer = {id(node) for unit in forms.chosen for node in unit.nodes}
    ends = {t.name for t in graph.outputs if id(producer(t)) in integer and t.name in grids}
    carried |= {name: name for name in outside | ends}
    known = replace(forms.grids, activations=grids)
    return replace(forms, grids=known, carried=carried, outside=outside)


def open_ends(graph: Graph, forms: Forms, pixels: Pixels | None) -> Interface:
    """Drop the Q of every carried input and the DQ of every output that has one.

    To be done when Q and DQ are written; returns on which grids codes go in and out.
    """
    inputs = {
        tensor.name: _open_input(graph, tensor)
        for tensor in list(graph.inputs)
        if tensor.name in forms.outside
    }
    ends = [(tensor, producer(tensor)) for tensor in graph.outputs]
    outputs = {
        str(tensor.name): _open_output(graph, tensor, node)
        for tensor, node in ends
        if node is not None and node.op == "DequantizeLinear"
    }
    return Interface(pixels, inputs, outputs)


def _open_input(graph: Graph, tensor: Tensor) -> Grid:
    """Let the codes of ``tensor`` come in under its name; everything reads it through its one Q."""
    (node,) = tensor.outputs
    grid, codes = _grid_of(node), node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    _take_place(graph, tensor, codes)
    graph.inputs = [codes if item is tensor else item for item in graph.inputs]
    return grid


def _open_output(graph: Graph, tensor: Tensor, node: Node) -> Grid:
    """Let the codes that ``node`` dequantizes go out under the name of ``tensor``."""
    grid, codes = _grid_of(node), node.inputs[0]
    _take_place(graph, tensor, codes)
    graph.outputs = [codes if item is tensor else item for item in graph.outputs]
    return grid


def _take_place(graph: Graph, tensor: Tensor, codes: Tensor) -> None:
    name = tensor.name
    tensor.name, codes.name = fresh(f"{name}_float", names(graph)), name
    codes.dtype, codes.shape = np.uint8, tensor.shape


def _grid_of(conversion: Node) -> Grid:
    scale, zero_point = (np.asarray(value(tensor)) for tensor in conversion.inputs[1:3])
    return Grid(float(scale.flat[0]), int(zero_point.flat[0]))
