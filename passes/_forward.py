# SPDX-License-Identifier: Apache-2.0
"""Folds the scale and offset of a norm forward, into every layer that reads it.

All or none: a norm whose output anything but a layer reads keeps its constants.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from qhyvit_onnx.composites import find_composites
from qhyvit_onnx.graph import (
    Graph,
    Node,
    bypass,
    can_redirect,
    operand,
    remove_node,
    value,
)
from qhyvit_onnx.kernels.norms import Affine, absorb_affine
from qhyvit_onnx.passes._affine import Scaling, scaling
from qhyvit_onnx.passes._affine_nodes import write_affine
from qhyvit_onnx.passes._layers import carries_bias, host_at, layer_of, renewed, write_layer
from qhyvit_onnx.passes._readers import FOREIGN, Moves, Reader, readers_of
from qhyvit_onnx.pattern import Miss


def candidates(graph: Graph) -> list[Scaling]:
    """Return what could be folded forward, last first: an offset leaves before its scale.

    Inside a GELU, HardSwish or the like nothing is: onnxruntime would not know it again. The bias
    of a MatMul is where it belongs.
    """
    inside = {
        id(node)
        for composite in find_composites(graph)
        if composite.kind != "GroupNorm1"
        for node in composite.nodes
    }
    free = (node for node in graph.nodes if id(node) not in inside)
    found = (_candidate(node) for node in free if not carries_bias(graph, node))
    return [item for item in found if item is not None][::-1]


def _candidate(node: Node) -> Scaling | None:
    """Return what ``node`` does to each channel at its output; None for the identity."""
    if node.op == "LayerNormalization":
        return _layer_norm(node)
    found = scaling(node)
    return found if isinstance(found, Scaling) and found.axis is not None else None


def _layer_norm(node: Node) -> Scaling | None:
    arrays = [None if t is None else value(t) for t in (operand(node, 1), operand(node, 2))]
    rank = len(node.outputs[0].shape or ())
    last = rank > 0 and node.attrs.get("axis", -1) in (-1, rank - 1)
    missing = operand(node, 2) is not None and arrays[1] is None
    if arrays[0] is None or missing or not last:
        return None
    gain = arrays[0].astype(np.float64).reshape(-1)
    offset = np.zeros(1) if arrays[1] is None else arrays[1].astype(np.float64).reshape(-1)
    if np.all(gain == 1.0) and not np.any(offset):
        return None
    return Scaling(node, node.inputs[0], Affine(gain, offset), rank - 1)


def fold_forward(graph: Graph, found: Scaling, moves: Moves, taken: set[str]) -> Miss | None:
    """Fold one scaling into the layers after it, or say why not."""
    readers = _readers(graph, found, moves)
    if isinstance(readers, Miss):
        return readers
    for reader in readers:
        host = host_at(graph, reader.host.node)  # as it stands: it may read the norm twice
        assert not isinstance(host, Miss), host
        layer = layer_of(host)
        assert not isinstance(layer, Miss), layer
        affine = _per_input(found.affine, reader)
        write_layer(graph, host, layer, absorb_affine(layer, affine), taken)
    _drop(graph, found, taken)
    return None


def _readers(graph: Graph, found: Scaling, moves: Moves) -> list[Reader] | Miss:
    node, out = found.node, found.node.outputs[0]
    if out.shape is None or found.axis is None:
        return Miss("a tensor of unknown rank", node.name)
    count = max(found.affine.gain.size, found.affine.offset.size)
    shape = [1] * len(out.shape)
    shape[found.axis] = count
    readers = readers_of(graph, moves, out, np.arange(count).reshape(shape))
    if isinstance(readers, Miss):
        return readers
    if np.any(found.affine.offset) and any(reader.pads for reader in readers):
        return Miss("a layer after it pads, and the padding has no offset", node.name)
    for reader in readers:
        if isinstance(layer := layer_of(reader.host), Miss):
            return layer
    if node.op != "LayerNormalization" and not can_redirect(graph, out, found.input):
        return Miss("a graph output on both sides", node.name)
    return readers


def _per_input(affine: Affine, reader: Reader) -> Affine:
    """Return the scale and offset of each input of a layer; inputs of other tensors keep theirs."""
    mine, ids = reader.ids != FOREIGN, reader.ids
    gain, offset = np.broadcast_arrays(*affine)
    return Affine(np.where(mine, gain[ids], 1.0), np.where(mine, offset[ids], 0.0))


def _drop(graph: Graph, found: Scaling, taken: set[str]) -> None:
    """Leave the norm without a scale and offset, or take the node out."""
    node = found.node
    if node.op == "LayerNormalization":
        held = node.inputs[1]
        one = renewed(held.name, np.ones(held.shape, held.dtype), taken)
        node.inputs = [node.inputs[0], one]
        return
    if node.inputs[0] is not found.input:
        node.inputs = node.inputs[::-1]
    bypass(graph, node)


def renamed(moves: Moves, old: Collection[str], new: str) -> Moves:
    """Return ``moves`` after the tensors named ``old`` became one, named ``new``."""

    def now(name: str) -> str:
        return new if name in old else name

    return {
        node: tuple(replace(m, input=now(m.input), output=now(m.output)) for m in held)
        for node, held in moves.items()
    }


def spell_out(graph: Graph, found: Scaling, taken: set[str]) -> None:
    """Write a BatchNormalization that has no layer beside it as one Mul and one Add."""
    node, out = found.node, found.node.outputs[0]
    remove_node(graph, node)
    write_affine(graph, found.input, out, found.affine, axis=1, stem=node.name, taken=taken)
