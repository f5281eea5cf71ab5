# SPDX-License-Identifier: Apache-2.0
"""Decomposed functions written as the one op that ONNX has for them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.helper import tensor_dtype_to_np_dtype

from qhyvit_onnx.composites import Composite, find_composites
from qhyvit_onnx.graph import (
    Graph,
    Tensor,
    axes_of,
    constant,
    fresh,
    make_node,
    scalar,
    value,
)
from qhyvit_onnx.pattern import AnyTensor, Miss, Op, match
from qhyvit_onnx.symbolic.dims import Shape, is_number
from qhyvit_onnx.symbolic.shapes import Knowledge

GELU_OPSET = 20
"""Gelu became an op here."""

Written = tuple[str, list[Tensor], dict[str, Any]]
"""Op, inputs after the first, attributes."""


def write_as_ops(
    graph: Graph, known: Knowledge, taken: set[str]
) -> tuple[dict[str, int], list[Miss]]:
    """Replace every composite that has an op; return how many by kind, and the near-misses."""
    misses: list[Miss] = []
    done: dict[str, int] = {}
    for composite in find_composites(graph, misses):
        rule = RULES.get(composite.kind)
        if rule is None or (composite.kind == "Gelu" and graph.opset < GELU_OPSET):
            continue
        written = rule(composite, known, taken)
        if isinstance(written, Miss):
            misses.append(written)
            continue
        _replace(graph, composite, written)
        done[composite.kind] = done.get(composite.kind, 0) + 1
    return done, misses


_FLAT_SOFTMAX = Op(
    "Reshape", (Op("Softmax", (Op("Flatten", (AnyTensor("x"),), bind="flat"),), bind="softmax"),)
)


def unflatten_softmax(graph: Graph, known: Knowledge) -> int:
    """Let Softmax work on the last axis in place: the opset converter flattens it to be safe."""
    edits = 0
    for node in [node for node in graph.nodes if node.op == "Reshape"]:
        bound = match(_FLAT_SOFTMAX, node, graph)
        if isinstance(bound, Miss) or not known.same_shape(bound["x"], node.outputs[0]):
            continue
        rank = len(known.shapes[bound["x"].name])
        over_last = bound["softmax"].attrs.get("axis", -1) in (-1, 1)
        if bound["flat"].attrs.get("axis", 1) in (-1, rank - 1) and over_last:
            node.op, node.inputs, node.attrs = "Softmax", [bound["x"]], {"axis": -1}
            edits += 1
    return edits


def _replace(graph: Graph, composite: Composite, written: Written) -> None:
    """Put one node in the place of the last node of ``composite``; clean-up drops the others."""
    op, more, attrs = written
    last = composite.nodes[-1]
    at = next(index for index, node in enumerate(graph.nodes) if node is last)
    last.outputs.clear()
    made = make_node(op, last.name, [composite.input, *more], [composite.output], attrs=attrs)
    graph.nodes[at] = made
    for node in composite.nodes:
        node.inputs.clear()


def _layer_norm(composite: Composite, known: Knowledge, taken: set[str]) -> Written | Miss:
    """Return LayerNormalization-17; the axes must be the last ones and their sizes known."""
    last, bound = composite.nodes[-1], composite.bound
    shape, axes = known.shapes.get(composite.input.name), axes_of(bound["mean"]) or []
    sizes = _trailing(shape, axes)
    if sizes is None:
        return Miss("LayerNorm: not over the last axes, or their size is not known", last.name)
    if known.elems.get(composite.input.name) != known.elems.get(composite.output.name):
        return Miss("LayerNorm: computed in another type", last.name)
    gamma = _parameter(bound.get("gamma"), sizes, composite, "scale", taken)
    inputs = [gamma if gamma is not None else _ones(sizes, composite, known, taken)]
    beta = _parameter(bound.get("beta"), sizes, composite, "bias", taken)
    if beta is not None:
        inputs.append(beta)
    eps = scalar(bound["eps"])
    return "LayerNormalization", inputs, {"axis": -len(sizes), "epsilon": float(eps or 0.0)}


def _trailing(shape: Shape | None, axes: list[int]) -> list[int] | None:
    """Return the sizes of ``axes`` when these are the last axes of ``shape``."""
    if shape is None or not axes:
        return None
    wanted = sorted(axis % len(shape) for axis in axes)
    sizes = list(shape[-len(axes) :])
    if wanted != list(range(len(shape) - len(axes), len(shape))) or not all(map(is_number, sizes)):
        return None
    return [int(size) for size in sizes]


def _parameter(
    tensor: Tensor | None, sizes: list[int], composite: Composite, role: str, taken: set[str]
) -> Tensor | None:
    """Return a scale or offset with the shape of the normalised axes."""
    if tensor is None:
        return None
    if list(tensor.shape) == sizes:
        return tensor
    array = value(tensor)
    assert array is not None
    trimmed = array.reshape(array.shape[max(0, array.ndim - len(sizes)) :])
    return _named(np.broadcast_to(trimmed, sizes), composite, role, taken)


def _ones(sizes: list[int], composite: Composite, known: Knowledge, taken: set[str]) -> Tensor:
    dtype = tensor_dtype_to_np_dtype(known.elems[composite.input.name])
    return _named(np.ones(sizes, dtype), composite, "scale", taken)


def _named(array: NDArray[Any], composite: Composite, role: str, taken: set[str]) -> Tensor:
    name = fresh(f"{composite.nodes[-1].name}.{role}", taken)
    taken.add(name)
    return constant(name, array)


def _softmax(composite: Composite, known: Knowledge, _taken: set[str]) -> Written | Miss:
    axes = axes_of(composite.bound["total"]) or []
    shape = known.shapes.get(composite.input.name)
    axis = axes[0] if axes[0] < 0 or shape is None else axes[0] - len(shape)
    return "Softmax", [], {"axis": axis}


def _hard_swish(_composite: Composite, _known: Knowledge, _taken: set[str]) -> Written:
    return "HardSwish", [], {}


def _hard_sigmoid(_composite: Composite, _known: Knowledge, _taken: set[str]) -> Written:
    return "HardSigmoid", [], {"alpha": 1 / 6, "beta": 0.5}


def _gelu(_composite: Composite, _known: Knowledge, _taken: set[str]) -> Written:
    return "Gelu", [], {}


RULES: Mapping[str, Callable[[Composite, Knowledge, set[str]], Written | Miss]] = {
    "LayerNorm": _layer_norm,
    "Softmax": _softmax,
    "HardSwish": _hard_swish,
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
}
"""The kinds that have an op; the others stay as they are."""
