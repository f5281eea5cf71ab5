# SPDX-License-Identifier: Apache-2.0
"""Does onnxruntime run what was placed? Read back from the graph it optimized.

Source:
    names of fused nodes as onnxruntime 1.31 writes them: a fused node keeps the name of its main
    node, with a suffix for the layout change or for the MatMul + Add rewrite.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from qhyvit_onnx.errors import AuditError
from qhyvit_onnx.runtime import Options, View, optimized
from qhyvit_onnx.units import LAYERS, Kind, Unit

INTEGER_KERNELS = frozenset({
    "QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "QLinearAdd", "QLinearMul",
    "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearConcat", "QLinearAveragePool",
    "QLinearGlobalAveragePool",
})  # fmt: skip

_SUFFIX = re.compile(r"(_token_\d+|/MatMulAddFusion|_nhwc|_transformed)+$")


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of one unit in one view."""

    unit: str
    kernel: str
    """Op that onnxruntime runs; empty when it was not found on an integer kernel."""
    reason: str = ""


def audit(
    model: onnx.ModelProto, units: Iterable[Unit], int8: Sequence[str], view: View
) -> tuple[Seen, ...]:
    """Return the kernel of every int8 unit.

    Error:
        AuditError naming the node when a unit placed int8 is not on an integer kernel, when a
        weight is dequantized at run time, or when a float layer was quantized unasked.
    """
    running = _Running(optimized(model, Options(view=view)))
    placed = frozenset(int8)
    seen = []
    for unit in units:
        found = running.kernel_of(unit)
        if unit.name in placed:
            if not found:
                raise AuditError(
                    f"{unit.kind} was placed int8 but onnxruntime ({view} view) runs it "
                    f"as {running.fate_of(unit)}",
                    node=unit.name,
                    hint=f"keep it float with --exclude '{unit.name}' and report this",
                )
            seen.append(Seen(unit.name, found))
        elif found and (unit.kind in LAYERS or unit.kind is Kind.PRODUCT):
            raise AuditError(
                f"{unit.kind} was placed float but onnxruntime ({view} view) runs {found}",
                node=unit.name,
            )
    running.refuse_run_time_weights(view)
    return tuple(seen)


def plain_name(name: str) -> str:
    """Return the name that a node of the optimized graph had in the model."""
    return _SUFFIX.sub("", name)


class _Running:
    """The optimized graph, by the names of the nodes it came from."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._by_name: dict[str, list[str]] = {}
        self._by_weight: Mapping[str, str] = {}
        constants = {item.name for item in model.graph.initializer}
        by_weight: dict[str, str] = {}
        for node in model.graph.node:
            for name in {node.name, plain_name(node.name)}:
                self._by_name.setdefault(name, []).append(node.op_type)
            by_weight.update({name: node.op_type for name in node.input if name in constants})
        self._by_weight, self._constants = by_weight, constants

    def kernel_of(self, unit: Unit) -> str:
        """Return the integer kernel that computes ``unit``, empty when there is none."""
        if unit.kind in LAYERS:
            by_weight = self._by_weight.get(f"{unit.name}.weight_q", "")
            if by_weight in INTEGER_KERNELS:
                return by_weight
        kernels = [op for op in self._by_name.get(unit.name, []) if op in INTEGER_KERNELS]
        if unit.kind in {Kind.SILU, Kind.GELU}:
            gate = self._by_name.get(unit.gate, [])
            return kernels[0] if kernels and "QLinearSigmoid" in gate else ""
        return kernels[0] if kernels else ""

    def fate_of(self, unit: Unit) -> str:
        """Return what runs instead, in words."""
        ops = self._by_name.get(unit.name, [])
        return " and ".join(ops) if ops else "something that no longer carries its name"

    def refuse_run_time_weights(self, view: View) -> None:
        """Raise AuditError when a constant is dequantized at every run."""
        for node in self._graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in self._constants:
                raise AuditError(
                    f"onnxruntime ({view} view) dequantizes constant {node.input[0]} at every run",
                    node=node.name,
                )
