# SPDX-License-Identifier: Apache-2.0
"""What is in a model, found without data: contract, families of ops, bridges, units, verdicts."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx

from qhyvit_onnx.composites import find_composites
from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.data.input_spec import resolve_shapes
from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.facts import BRIDGES
from qhyvit_onnx.graph import MOVEMENT, Graph, Node, Tensor, is_constant, producer
from qhyvit_onnx.model_checks import QUANTIZED, constants, scopes
from qhyvit_onnx.model_io import input_specs, load_model
from qhyvit_onnx.passes.detect_bridges import DetectBridges
from qhyvit_onnx.passes.fold_norms import FoldNorms
from qhyvit_onnx.passes.normalise import Normalise
from qhyvit_onnx.pipeline import Watcher, run
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import Rule, Target
from qhyvit_onnx.units import Unit, find_units

SCHEMA = 1
"""Version of the JSON of ``inspect``."""

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "convolution": ("Conv", "ConvTranspose"),
    "linear": ("Gemm", "linear MatMul"),
    "attention product": ("MatMul", "Einsum", "Softmax"),
    "norm": ("BatchNormalization", "LayerNormalization", "LayerNorm", "GroupNormalization",
             "GroupNorm1", "InstanceNormalization"),
    "activation": ("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "Elu", "Erf", "Gelu",
                   "Silu", "HardSwish", "HardSigmoid", "Mish"),
    "elementwise": ("Add", "Sub", "Mul", "Div", "Pow", "Sqrt"),
    "pooling": ("AveragePool", "GlobalAveragePool", "MaxPool", "ReduceMean"),
    "quantization": ("QuantizeLinear", "DequantizeLinear"),
    "data movement": ("Concat", *sorted(MOVEMENT - {"MaxPool"})),
}  # fmt: skip
"""Families of ops, in the order they are shown; the rest is ``other``."""


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """Free dims by their name, ``?`` when they have none."""


@dataclass(frozen=True, slots=True)
class UnitView:
    """One fusion unit and what the target's table says about its kind."""

    name: str
    kind: str
    verdict: str
    int8: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Everything ``inspect`` has to say. The fields are the keys of its JSON."""

    schema_version: int
    path: str
    file_bytes: int
    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    parameters: int
    nodes: int
    nodes_normalised: int
    quantized: bool
    """Whether the model was quantized before: nothing is normalised then, there are no units."""
    families: Mapping[str, Mapping[str, int]]
    target: str
    units: tuple[UnitView, ...]
    bridges: tuple[str, ...]


def inspect_model(path: Path, target: Target, shapes: Mapping[str, tuple[int, ...]]) -> Inspection:
    """Look at the model at ``path``; nothing is run and nothing is written.

    Error:
        ModelError for what could not be compiled either, except a model quantized already.
    """
    model = _load(path)
    quantized = _is_quantized(model)
    resolve_shapes(input_specs(model), shapes)
    state = State(model, CompileConfig(input_shapes=shapes), Feeds.of([]))
    if not quantized:
        run([Normalise()], state, Watcher())
    families, nodes = families_of(state.graph), len(state.graph.nodes)
    if not quantized:
        run([FoldNorms(), DetectBridges()], state, Watcher())
    units = [] if quantized else find_units(state.graph)
    return Inspection(
        schema_version=SCHEMA,
        path=str(path),
        file_bytes=path.stat().st_size,
        ir_version=model.ir_version,
        opsets={item.domain or "ai.onnx": item.version for item in model.opset_import},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=tuple(_port(info) for info in model.graph.input),
        outputs=tuple(_port(info) for info in model.graph.output),
        parameters=_parameters(model),
        nodes=len(model.graph.node),
        nodes_normalised=nodes,
        quantized=quantized,
        families=families,
        target=target.name,
        units=tuple(_view(unit, target) for unit in units),
        bridges=tuple(b.why for b in state.get(BRIDGES)) if state.has(BRIDGES) else (),
    )


def families_of(graph: Graph) -> dict[str, dict[str, int]]:
    """Count ops by family; a function spelled out in several nodes counts once, by its name."""
    composites = find_composites(graph)
    inside = {id(node) for composite in composites for node in composite.nodes}
    counts = Counter(_op(node) for node in graph.nodes if id(node) not in inside)
    counts.update(composite.kind for composite in composites)
    home = {op: family for family, ops in FAMILIES.items() for op in ops}
    found: dict[str, dict[str, int]] = {}
    for family in (*FAMILIES, "other"):
        ops = [(op, n) for op, n in counts.most_common() if home.get(op, "other") == family]
        if ops:
            found[family] = dict(ops)
    return found


def verdict(unit: Unit, target: Target) -> tuple[bool, str]:
    """Return whether the target's table may run ``unit`` in int8, and on what that depends."""
    row = target.rows[unit.kind]
    if row.rule is Rule.NEVER:
        return False, f"float: {row.reason}"
    if row.rule is not Rule.ALWAYS:
        return True, f"int8 {row.rule}"
    return True, "int8 when large enough" if row.min_reuse else "int8"


def _view(unit: Unit, target: Target) -> UnitView:
    int8, text = verdict(unit, target)
    return UnitView(unit.name, str(unit.kind), text, int8)


def _load(path: Path) -> onnx.ModelProto:
    """Load a float model with every check; a quantized one, which they refuse, without."""
    try:
        return load_model(path)
    except ModelError:
        with suppress(Exception):
            model = onnx.load(path)
            if _is_quantized(model):
                return model
        raise


def _is_quantized(model: onnx.ModelProto) -> bool:
    return any(QUANTIZED.fullmatch(node.op_type) for nodes, _ in scopes(model) for node in nodes)


def _parameters(model: onnx.ModelProto) -> int:
    """Return how many numbers the weights hold; shapes and single numbers are no weights."""
    kinds = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    sizes = ((tensor.data_type, prod(tensor.dims)) for _, tensor in constants(model))
    return sum(size for kind, size in sizes if kind in kinds and size > 1)


def _op(node: Node) -> str:
    linear = node.op == "MatMul" and any(map(_is_weight, node.inputs))
    return "linear MatMul" if linear else str(node.op)


def _is_weight(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` is a constant, quantized or not."""
    above = producer(tensor)
    packed = above is not None and above.op == "DequantizeLinear" and is_constant(above.inputs[0])
    return packed or is_constant(tensor)


def _port(info: onnx.ValueInfoProto) -> Port:
    tensor = info.type.tensor_type
    shape = tuple(d.dim_value if d.dim_value > 0 else d.dim_param or "?" for d in tensor.shape.dim)
    return Port(info.name, onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), shape)
