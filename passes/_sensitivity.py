# SPDX-License-Identifier: Apache-2.0
"""How much the model's output suffers when one unit alone is quantized, by forward runs only.

Two models are made of the float graph. The first computes, beside the float path, what every unit
would write if it were quantized, and returns the differences. The second adds a given difference
to a unit's output, so one run tells what that unit's error does to the end of the network; its
weights stay constants, hence as fast as the float model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qhyvit_onnx.data import Feed
from qhyvit_onnx.facts import Grids
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.programs import program_of
from qhyvit_onnx.runtime import Options, Session
from qhyvit_onnx.units import Unit

_TWIN = "__twin"
_DELTA = "__delta"
_PLAIN = Options(fuse_qdq=False)


@dataclass(frozen=True, slots=True)
class Probe:
    """One quantized unit: what to perturb."""

    unit: Unit
    writes_codes: bool


def measure(
    model: onnx.ModelProto,
    probes: Sequence[Probe],
    grids: Grids,
    samples: Iterable[Feed],
    tick: Callable[[int], None],
) -> dict[str, float]:
    """Return, by unit name, squared output error over squared output, mean over ``samples``.

    An output behind a softmax or sigmoid counts by what that reads: where the model is sure of its
    answer, the answer itself hardly tells errors apart.

    Error:
        one unit at a time: errors of different units are taken to add up.
    """
    twins = Session(_twin_model(model, probes, grids), _PLAIN)
    outputs = _ends(model)
    injected = Session(_injection_model(model, [probe.unit for probe in probes], outputs), _PLAIN)
    noise = dict.fromkeys((probe.unit.name for probe in probes), 0.0)
    count = 0
    for feeds in samples:
        count += 1
        deltas = twins.run(feeds)
        clean = injected.run(feeds, outputs)
        for probe in probes:
            name = f"{probe.unit.output.name}{_DELTA}"
            dirty = injected.run({**feeds, name: deltas[name]}, outputs)
            noise[probe.unit.name] += _relative_error(clean, dirty)
        tick(count)
    return {name: total / max(count, 1) for name, total in noise.items()}


def _ends(model: onnx.ModelProto) -> list[str]:
    """Return what the outputs are made of, before a closing softmax or sigmoid."""
    closings = program_of(model).closings().items()
    return list(dict.fromkeys(out if step is None else step.inputs[0] for out, step in closings))


def _relative_error(
    clean: Mapping[str, NDArray[np.generic]], dirty: Mapping[str, NDArray[np.generic]]
) -> float:
    """Return squared error over squared signal, mean over the outputs that are numbers.

    What is not finite does not count: a softmax may read the minus infinity of a mask.
    """
    ratios = []
    for name, reference in clean.items():
        if isinstance(reference, np.ndarray) and np.issubdtype(reference.dtype, np.floating):
            signal, found = (np.asarray(x, np.float64) for x in (reference, dirty[name]))
            known = np.isfinite(signal) & np.isfinite(found)
            signal, error = signal[known], found[known] - signal[known]
            ratios.append(float(error @ error) / max(float(signal @ signal), 1e-30))
    return float(np.mean(ratios)) if ratios else 0.0


def _injection_model(
    model: onnx.ModelProto, units: Sequence[Unit], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Return ``model`` with an optional input at every unit's output that is added to it."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    producers = {name: node for node in out.graph.node for name in node.output}
    for unit in units:
        name = unit.output.name
        node = producers[name]
        index = list(node.output).index(name)
        node.output[index] = f"{name}__clean"
        delta = f"{name}{_DELTA}"
        out.graph.input.append(helper.make_tensor_value_info(delta, onnx.TensorProto.FLOAT, None))
        out.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), delta))
        position = list(out.graph.node).index(node) + 1
        add = helper.make_node("Add", [f"{name}__clean", delta], [name], name=f"{delta}/add")
        out.graph.node.insert(position, add)
    present = {info.name for info in out.graph.output}
    out.graph.output.extend(onnx.ValueInfoProto(name=n) for n in outputs if n not in present)
    return out


def _twin_model(model: onnx.ModelProto, probes: Sequence[Probe], grids: Grids) -> onnx.ModelProto:
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
        delta = f"{unit.output.name}{_DELTA}"
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
