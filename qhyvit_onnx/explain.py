# SPDX-License-Identifier: Apache-2.0
"""What onnxruntime makes of every node of a compiled model, here and on ARM, and why float."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from fnmatch import fnmatchcase

import onnx

from qhyvit_onnx.audit import INTEGER_KERNELS, plain_name
from qhyvit_onnx.errors import ConfigError, ModelError
from qhyvit_onnx.graph import MOVEMENT
from qhyvit_onnx.runtime import Options, View, optimized
from qhyvit_onnx.units import UNIT_OPS

LEFT_FLOAT = "qhyvit_onnx.left_float"
"""Key of the metadata in which a compiled model says why units stay float, as JSON by name."""

_CODES = frozenset({onnx.TensorProto.UINT8, onnx.TensorProto.INT8})
_COUNTS = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL})
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_TO_FLOATS = "MatMulIntegerToFloat"
_BIAS = "bias of an integer layer that writes floats"

_FUSED = re.compile(r"(/[A-Za-z]+Fusion/?)+$")
"""What onnxruntime appends to the name of a node that stands for several."""

_FREE = frozenset({"Shape", "Constant", "ConstantOfShape", "Identity"})


class Runs(StrEnum):
    """How a node of the optimized graph runs."""

    INT8 = "int8"
    """On an integer kernel."""
    CODES = "moves codes"
    """Moves bytes about, computes nothing."""
    CONVERTS = "converts"
    """Between floats and codes."""
    FLOAT = "float"
    MOVES = "moves floats"
    COUNTS = "shapes"
    """Computes with sizes and indices, not with activations."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one node in one view."""

    name: str
    """As in the model, without what onnxruntime appends."""
    kernel: str
    """Op that onnxruntime runs."""
    runs: Runs
    reason: str = ""
    """Why it computes on floats; empty for all else."""
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explained:
    """A compiled model as it is run."""

    fates: Mapping[View, Sequence[Fate]]
    """Every node, in the order in which it runs."""
    nodes: Mapping[str, onnx.NodeProto] = field(repr=False)
    """The nodes of the model itself, by name."""
    constants: Mapping[str, onnx.TensorProto] = field(repr=False)

    def find(self, pattern: str) -> list[str]:
        """Return the names of nodes that ``pattern`` names, exactly or as a glob.

        Error:
            ConfigError with the nearest name when there is none.
        """
        names = list(dict.fromkeys([*self.nodes, *(f.name for f in self.fates[View.HOST])]))
        if pattern in names:
            return [pattern]
        found = [n for n in names if fnmatchcase(n, pattern) and n not in self._weights]
        if not found:
            near = get_close_matches(pattern, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else "qhv-onnx explain MODEL lists them"
            raise ConfigError(f"no node is called {pattern!r}", hint=hint)
        return found

    @property
    def _weights(self) -> set[str]:
        """Names of the nodes that dequantize constants: parts of the layers that read them."""
        held = self.constants
        return {name for name, node in self.nodes.items() if node.input and node.input[0] in held}

    def fate(self, name: str, view: View) -> Fate | None:
        """Return what runs node ``name``: itself, or the kernel it was merged into.

        None when nothing of it is left: it was constant, or is done by its neighbours.
        """
        for fate in self.fates[view]:
            if fate.name == name:
                return fate
        node = self.nodes.get(name)
        written = set(node.output) if node is not None else set()
        written |= {out for n in self.nodes.values() if written & {*n.input} for out in n.output
                    if n.op_type == "QuantizeLinear"}  # fmt: skip
        makers = {out: fate for fate in self.fates[view] for out in fate.writes}
        found = next((makers[out] for out in written if out in makers), None)
        while found is not None and found.runs in {Runs.CODES, Runs.MOVES, Runs.CONVERTS}:
            found = makers.get(found.reads[0])  # onnxruntime changed the layout after it
        return found

    def tensors(self, name: str) -> list[tuple[str, str]]:
        """Return what node ``name`` of the model reads and writes, and on which grids."""
        node = self.nodes.get(name)
        if node is None:
            return []
        makers = {out: n for n in self.nodes.values() for out in n.output}
        found = [
            ("reads", f"{tensor}: {self._grid(makers[tensor])}")
            if tensor in makers and makers[tensor].op_type == "DequantizeLinear"
            else ("reads", f"{tensor}: float" if tensor not in self.constants else f"{tensor}")
            for tensor in node.input
            if tensor
        ]
        for out in node.output:
            quantizers = [n for n in self.nodes.values()
                          if n.op_type == "QuantizeLinear" and n.input[0] == out]  # fmt: skip
            grids = [self._grid(n) for n in quantizers] or ["float"]
            found += [("writes", f"{out}: {grid}") for grid in grids]
        return found

    def _grid(self, conversion: onnx.NodeProto) -> str:
        """Return the grid of a Q or DQ in words."""
        scale, zero = (onnx.numpy_helper.to_array(self.constants[n]) for n in conversion.input[1:3])
        if scale.size == 1:
            return f"{zero.dtype}, scale {float(scale.flat[0]):.4g}, zero point {zero.flat[0]}"
        low, high = float(scale.min()), float(scale.max())
        return f"{zero.dtype}, {scale.size} scales of {low:.3g} to {high:.3g}"


def explain(model: onnx.ModelProto) -> Explained:
    """Return how onnxruntime runs ``model``, by this CPU's decisions and by those of ARM.

    Error:
        ModelError when ``model`` was not compiled by this tool.
    """
    told = {item.key: item.value for item in model.metadata_props}
    if "qhyvit_onnx.version" not in told:
        raise ModelError("the model was not compiled by qhv-onnx", hint="give a MODEL.qdq.onnx")
    reasons: dict[str, str] = json.loads(told.get(LEFT_FLOAT, "{}"))
    fates = {view: tuple(_fates(model, view, reasons)) for view in View}
    nodes = {node.name: node for node in model.graph.node}
    return Explained(fates, nodes, {item.name: item for item in model.graph.initializer})


def _fates(model: onnx.ModelProto, view: View, reasons: Mapping[str, str]) -> Iterator[Fate]:
    """Yield the nodes of the optimized graph; types that it does not tell follow from the ops."""
    graph = optimized(model, Options(view=view)).graph
    types = {info.name: info.type.tensor_type.elem_type for info in graph.value_info}
    types |= {info.name: info.type.tensor_type.elem_type for info in graph.input}
    types |= {item.name: item.data_type for item in graph.initializer}
    floats, constants = onnx.TensorProto.FLOAT, {item.name for item in graph.initializer}
    to_floats: set[str] = set()
    for node in graph.node:
        read = types.get(node.input[0], floats) if node.input else floats
        runs = _runs(node, read, [types.get(out, 0) for out in node.output])
        for out in node.output:
            types.setdefault(out, _written(node, read))
        name = _FUSED.sub("", plain_name(node.name))
        to_floats |= {*node.output} if node.op_type == _TO_FLOATS else set()
        constant = any(item in constants for item in node.input[:2])
        bias = constant and node.op_type == "Add" and not to_floats.isdisjoint(node.input)
        told = _BIAS if bias else reasons.get(name) or _reason(node, constant=constant)
        reason = told if runs is Runs.FLOAT else ""
        yield Fate(name, node.op_type, runs, reason, tuple(node.input), tuple(node.output))


def _runs(node: onnx.NodeProto, read: int, written: Sequence[int]) -> Runs:
    if node.op_type in INTEGER_KERNELS:
        return Runs.INT8
    if node.op_type in _CONVERSIONS:
        return Runs.CONVERTS
    if node.op_type in _FREE or any(kind in _COUNTS for kind in (read, *written)):
        return Runs.COUNTS
    if node.op_type in MOVEMENT or read in _CODES:
        return Runs.CODES if read in _CODES else Runs.MOVES
    return Runs.FLOAT


def _written(node: onnx.NodeProto, read: int) -> int:
    """Return the element type of what ``node`` writes, if onnxruntime does not say."""
    if node.op_type in MOVEMENT:
        return read
    codes = node.op_type == "QuantizeLinear" or node.op_type in INTEGER_KERNELS
    floats = not codes or node.op_type == _TO_FLOATS
    return onnx.TensorProto.FLOAT if floats else onnx.TensorProto.UINT8


def _reason(node: onnx.NodeProto, *, constant: bool) -> str:
    """Return why ``node`` runs on floats, if placement did not decide about it."""
    if node.op_type == "Sum" and len(node.input) == 1:
        return "a copy of dequantized values that several float nodes share"
    if node.op_type in {"Add", "Mul", "Sub", "Div"} and constant:
        return f"{node.op_type} with a constant, in no layer that runs int8"
    if node.op_type in UNIT_OPS:
        return f"{node.op_type} not in a form that an integer kernel takes"
    return f"onnxruntime has no integer kernel for {node.op_type}"
