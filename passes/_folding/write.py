# SPDX-License-Identifier: Apache-2.0
"""Writes a scale and shift of channels into the constants of those who compute and read them."""

from dataclasses import dataclass

import numpy as np

from qhyvit_onnx.graph import (
    Graph,
    Node,
    constant,
    fresh,
    is_constant,
    make_node,
    names,
    operand,
    value,
    variable,
)
from qhyvit_onnx.kernels.norms import Affine, absorb_affine, fold_affine
from qhyvit_onnx.passes._affine_nodes import lying, write_affine
from qhyvit_onnx.passes._folding.flow import Floats, Flow, Gate, Held, Source
from qhyvit_onnx.passes._layers import Host, host_at, layer_of, renewed, write_layer
from qhyvit_onnx.passes._readers import Ids, Reader
from qhyvit_onnx.pattern import Miss


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """x = scale * x' + shift, channel by channel. Shapes: both (size + 1,), FOREIGN last."""

    scale: Floats
    shift: Floats

    def touches(self, ids: Ids) -> bool:
        """Tell whether anything is done to the channels ``ids``."""
        return bool(np.any(self.scale[ids] != 1.0) or np.any(self.shift[ids] != 0.0))


class Writer:
    """Applies one change to a graph; each layer may both compute and read what changes."""

    def __init__(self, graph: Graph, flow: Flow, change: Change) -> None:
        """Nothing is written yet."""
        self._graph, self._flow, self._change = graph, flow, change
        self._taken = names(graph)

    def write(self) -> None:
        """Edit every source, reader and constant that the change touches."""
        for source in self._flow.sources:
            if self._change.touches(source.ids):
                self._divide(source)
        for _, reader in self._flow.readers:
            if self._change.touches(reader.ids):
                self._give_back(reader)
        for held in self._flow.constants:
            if np.any(self._change.scale[held.ids] != 1.0):
                self._divide_constant(held)
        for gate in self._flow.gates:
            self._rescale(gate)

    def _divide(self, source: Source) -> None:
        """Let a source compute (x - shift) / scale."""
        scale, shift = self._change.scale[source.ids], self._change.shift[source.ids]
        affine = Affine(1.0 / scale, -shift / scale)
        if source.layer is not None:
            host = self._now(source.layer)
            layer = layer_of(host)
            assert not isinstance(layer, Miss), layer
            write_layer(self._graph, host, layer, fold_affine(layer, affine), self._taken)
        elif source.scale is not None and source.scale is source.offset:
            self._divide_norm(source.scale, affine)
        elif source.scale is not None:
            self._divide_mul(source, affine)
        else:
            self._put_behind(source, affine)

    def _divide_norm(self, node: Node, affine: Affine) -> None:
        """Change scale and offset of a LayerNormalization."""
        held = node.inputs[1]
        gain = np.asarray(value(held), np.float64).reshape(-1) * affine.gain
        given = operand(node, 2)
        offset = np.zeros(1) if given is None else np.asarray(value(given), np.float64).reshape(-1)
        total = offset * affine.gain + affine.offset
        name = given.name if given is not None else f"{node.name}.offset"
        arrays = [array.astype(held.dtype) for array in (gain, total)]
        made = [
            renewed(label, array, self._taken)
            for label, array in zip((held.name, name), arrays, strict=True)
        ]
        node.inputs = [node.inputs[0], *made]

    def _divide_mul(self, source: Source, affine: Affine) -> None:
        """Change a Mul by one number a channel, and the Add behind it."""
        for node, factor, added in (
            (source.scale, affine.gain, np.zeros(1)),
            (source.offset, affine.gain, affine.offset),
        ):
            if node is None:
                continue
            at = next(i for i, tensor in enumerate(node.inputs) if is_constant(tensor))
            held = np.asarray(value(node.inputs[at]), np.float64)
            rank = max(held.ndim, len(source.tensor.shape))
            total = held * lying(factor, source.axis, rank) + lying(added, source.axis, rank)
            array = total.astype(node.inputs[at].dtype)
            node.inputs[at] = renewed(node.inputs[at].name, array, self._taken)

    def _put_behind(self, source: Source, affine: Affine) -> None:
        """Put a Mul and an Add behind a norm that has neither."""
        old, maker = source.tensor, source.tensor.inputs[0]
        bare = variable(fresh(f"{old.name}.normalised", self._taken), old)
        self._taken.add(bare.name)
        maker.outputs = [bare if out is old else out for out in maker.outputs]
        write_affine(
            self._graph, bare, old, affine, axis=source.axis, stem=maker.name, taken=self._taken
        )

    def _give_back(self, reader: Reader) -> None:
        """Let a reader compute with scale * x' + shift."""
        affine = Affine(self._change.scale[reader.ids], self._change.shift[reader.ids])
        host = self._now(reader.host)
        layer = layer_of(host)
        assert not isinstance(layer, Miss), layer
        write_layer(self._graph, host, layer, absorb_affine(layer, affine), self._taken)

    def _divide_constant(self, held: Held) -> None:
        """Divide what is added to the channels."""
        old = held.node.inputs[held.index]
        array = np.asarray(value(old), np.float64) / self._change.scale[held.ids]
        held.node.inputs[held.index] = renewed(old.name, array.astype(old.dtype), self._taken)

    def _rescale(self, gate: Gate) -> None:
        """Multiply a gate by what its channels are read in over what they are written in."""
        factor = self._change.scale[gate.read] / self._change.scale[gate.written]
        if np.all(factor == 1.0):
            return
        given = gate.node.inputs[gate.index]
        name = fresh(f"{gate.node.name}.scale", self._taken)
        made = variable(fresh(f"{given.name}.scaled", self._taken), given)
        held = constant(f"{name}.constant", factor.astype(given.dtype or np.float32))
        self._taken |= {name, made.name, held.name}
        self._graph.nodes.append(make_node("Mul", name, [given, held], [made]))
        gate.node.inputs[gate.index] = made

    def _now(self, host: Host) -> Host:
        """Return the layer as it stands: an earlier edit may have given it a bias."""
        found = host_at(self._graph, host.node)
        assert not isinstance(found, Miss), found
        return found
