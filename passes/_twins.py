# SPDX-License-Identifier: Apache-2.0
"""What every unit would write if it alone were quantized, and a model that can be told so."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qhyvit_onnx.facts import Grids
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.units import Unit

DELTA = "__delta"
"""Ends the name of what quantizing a unit adds to its output."""

_TWIN = "__twin"


@dataclass(frozen=True, slots=True)
class Probe:
    """One quantized unit: what to perturb."""

    unit: Unit
    writes_codes: bool
    cost: float = 1.0
    """Of the unit in float, in any unit."""


def twin_model(model: onnx.ModelProto, probes: Sequence[Probe], grids: Grids) -> onnx.ModelProto:
    """Return ``model`` with a quantized twin beside every unit; its outputs are the differences."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    del out.graph.output[:]
    writer = _TwinWriter(out.graph, grids)
    nodes = {node.name: (index, node) for index, node in enumerate(out.graph.node)}
    for probe in probes:
        ordered = sorted((nodes[node.name] for node in probe.unit.nodes), key=itemgetter(0))
        writer.add(probe, [node for _, node in ordered])
    return out


def stirred(model: onnx.ModelProto, tensors: Collection[str]) -> onnx.ModelProto:
    """Return ``model`` with an input for each of ``tensors``, which is added; 0 unless fed."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    del out.graph.node[:]
    for node in model.graph.node:
        copy = out.graph.node.add()
        copy.CopyFrom(node)
        added = [name for name in node.output if name in tensors]
        copy.output[:] = [f"{name}__clean" if name in added else name for name in node.output]
        for name in added:
            zero = numpy_helper.from_array(np.zeros((), np.float32), delta := f"{name}{DELTA}")
            out.graph.initializer.append(zero)
            out.graph.input.append(
                helper.make_tensor_value_info(delta, onnx.TensorProto.FLOAT, None)
            )
            out.graph.node.append(
                helper.make_node("Add", [f"{name}__clean", delta], [name], name=f"{delta}/add")
            )
    return out


class _TwinWriter:
    """Appends twins to a graph; a tensor that several units read is rounded once."""

    def __init__(self, graph: onnx.GraphProto, grids: Grids) -> None:
        self._graph, self._grids = graph, grids
        self._rounded: dict[str, str] = {}

    def add(self, probe: Probe, nodes: Sequence[onnx.NodeProto]) -> None:
        """Append copies of ``nodes`` that read rounded inputs and weights, and the difference."""
        unit = probe.unit
        renamed = {tensor.name: self._round(tensor.name) for tensor in unit.inputs}
        if unit.weight is not None:
            renamed[unit.weight.name] = self._weight(unit)
        inner = {name for node in nodes for name in node.output}
        for node in nodes:
            self._copy(node, renamed, inner, unit)
        result = f"{unit.output.name}{_TWIN}"
        if probe.writes_codes:
            result = self._round(unit.output.name, source=result)
        delta = f"{unit.output.name}{DELTA}"
        self._graph.node.append(helper.make_node("Sub", [result, unit.output.name], [delta]))
        self._graph.output.append(
            helper.make_tensor_value_info(delta, onnx.TensorProto.FLOAT, None)
        )

    def _copy(
        self, node: onnx.NodeProto, renamed: dict[str, str], inner: set[str], unit: Unit
    ) -> None:
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name = f"{node.name}{_TWIN}"
        twin.input[:] = [
            renamed.get(name, f"{name}{_TWIN}" if name in inner else name) for name in node.input
        ]
        twin.output[:] = [f"{name}{_TWIN}" for name in node.output]
        self._graph.node.append(twin)
        for tensor in unit.interior:
            if tensor.name in node.output:
                renamed[tensor.name] = self._round(tensor.name, source=f"{tensor.name}{_TWIN}")

    def _weight(self, unit: Unit) -> str:
        name = f"{unit.name}.weight{_TWIN}"
        rounded = self._grids.weight_of(unit)
        self._graph.initializer.append(numpy_helper.from_array(rounded, name))
        return name

    def _round(self, tensor: str, source: str = "") -> str:
        """Append Q and DQ of ``source`` on the grid of ``tensor``; return the rounded name."""
        source = source or tensor
        if source not in self._rounded:
            grid = self._grids.activations[tensor]
            pair = self._pair(grid, source)
            rounded = f"{source}__rounded"
            quantize = helper.make_node("QuantizeLinear", [source, *pair], [f"{source}__codes"])
            restore = helper.make_node("DequantizeLinear", [f"{source}__codes", *pair], [rounded])
            self._graph.node.extend([quantize, restore])
            self._rounded[source] = rounded
        return self._rounded[source]

    def _pair(self, grid: Grid, name: str) -> tuple[str, str]:
        pair = (f"{name}__scale", f"{name}__zero_point")
        self._graph.initializer.extend([
            numpy_helper.from_array(np.array(grid.scale, np.float32), pair[0]),
            numpy_helper.from_array(np.array(grid.zero_point, np.uint8), pair[1]),
        ])  # fmt: skip
        return pair
