# SPDX-License-Identifier: Apache-2.0
"""Activations carried as uint8: one Q per tensor, one DQ that its integer readers share."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qhyvit_onnx.errors import PassError
from qhyvit_onnx.graph import (
    MOVEMENT,
    Graph,
    Node,
    Tensor,
    constant,
    fresh,
    is_output,
    make_node,
    names,
    producer,
    value,
    variable,
)
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.passes._forms import Forms
from qhyvit_onnx.units import moves

_PASSES_Q = MOVEMENT | {"Relu", "Clip", "Add"}
"""Ops through which onnxruntime moves a Q up to a layer, or folds away between the two."""


class _Plan(NamedTuple):
    """The readers of one carried tensor."""

    integer: list[Node]
    """Kernels that fuse the DQ."""
    floating: list[Node]
    """Float nodes behind an integer kernel: they read dequantized values."""
    guarded: list[Node]
    """Float layers that onnxruntime would quantize unasked behind a scalar DQ."""


class Carrier:
    """Inserts Q and DQ for every carried tensor."""

    def __init__(self, graph: Graph, forms: Forms) -> None:
        """Look up the tensors once: names change while Q and DQ are written."""
        self._graph, self._grids, self._readings = graph, forms.grids, forms.readings
        self._taken, self._outside = names(graph), forms.outside
        self._integer = {id(node): unit for unit in forms.chosen for node in unit.nodes}
        self._parameters: dict[Grid, tuple[Tensor, Tensor]] = {}
        tensors = graph.tensors()
        self._tensors = [tensors[name] for name in forms.carried]
        self._ids = {id(tensor) for tensor in self._tensors}
        self._owners = {id(tensors[name]): owner for name, owner in forms.carried.items()}

    def write(self) -> None:
        """Insert Q and DQ; decide every rewiring first, then edit."""
        plans = [(tensor, self._plan(tensor)) for tensor in self._tensors]
        for tensor, plan in plans:
            self._insert(tensor, plan)

    def _plan(self, tensor: Tensor) -> _Plan:
        """Sort the readers of ``tensor`` by what they shall read."""
        plan = _Plan([], [], [])
        for node in tensor.outputs:
            if self._reads_codes(node, tensor):
                plan.integer.append(node)
            elif self._from_integer(tensor):
                (plan.guarded if self._sandwiched(node) else plan.floating).append(node)
        return plan

    def _from_integer(self, tensor: Tensor) -> bool:
        node = producer(tensor)
        if node is None:
            return tensor.name in self._outside
        if id(node) in self._integer:
            return True
        return moves(node) and id(node.inputs[0]) in self._ids

    def _reads_codes(self, node: Node, tensor: Tensor) -> bool:
        unit = self._integer.get(id(node))
        if unit is not None:
            return any(tensor is t for t in (*unit.inputs, *unit.interior))
        return moves(node) and all(id(out) in self._ids for out in node.outputs)

    def _sandwiched(self, node: Node) -> bool:
        """Tell whether onnxruntime would quantize float layer ``node`` unasked.

        It does (WeightBiasQuantization) to Conv, ConvTranspose, Gemm and MatMul + Add with float
        constant weights between a scalar DQ and a Q, and it moves DQ and Q through data movement.
        """
        if moves(node):
            return any(self._sandwiched(reader) for out in node.outputs for reader in out.outputs)
        if (
            node.op not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}
            or value(node.inputs[1]) is None
        ):
            return False
        return self._reaches_q(node.outputs[0])

    def _reaches_q(self, tensor: Tensor) -> bool:
        if id(tensor) in self._ids:
            return True
        below = (node for node in tensor.outputs if node.op in _PASSES_Q)
        return any(self._reaches_q(out) for node in below for out in node.outputs)

    def _insert(self, tensor: Tensor, plan: _Plan) -> None:
        grid = self._grids.activations[self._owners[id(tensor)]]
        codes = self._append(
            "QuantizeLinear", tensor, f"{tensor.name}_q", self._pair(grid), np.uint8
        )
        public = is_output(self._graph, tensor) and self._from_integer(tensor)
        if grid.bits < 8:
            codes = self._clipped(codes, grid)
        copied = len(plan.floating) > 1 or any(_multiplies(node) for node in plan.floating)
        own = [n for n in plan.integer if (tensor.name, n.name) not in self._readings]
        for node in plan.integer:
            if node not in own:
                reading = self._pair(self._readings[tensor.name, str(node.name)])
                _rewire([node], tensor, self._restore(tensor, codes, f"_dq_{node.op}", reading))
        direct = own if copied else [*own, *plan.floating]
        if direct or copied or public:
            restored = self._restore(tensor, codes, "_dq", self._pair(grid))
            _rewire(direct, tensor, restored)
            if copied:
                self._copy_for(plan.floating, tensor, restored)
            if public:
                self._publish(tensor, restored)
        if plan.guarded:
            axis, size = _static_axis(tensor)
            pair = self._vector_pair(tensor.name, grid, size)
            _rewire(
                plan.guarded, tensor, self._restore(tensor, codes, "_dq_float", pair, axis=axis)
            )

    def _clipped(self, codes: Tensor, grid: Grid) -> Tensor:
        """Return ``codes`` saturated to fewer bits; kernels stay fused around a Clip of codes."""
        bounds = [
            constant(self._name(f"{codes.name}.{end}"), np.array(code, np.uint8))
            for end, code in (("lowest", 0), ("highest", grid.top))
        ]
        out = variable(self._name(f"{codes.name}_clipped"), codes, dtype=np.uint8)
        name = self._name(f"{codes.name}/clip")
        self._graph.nodes.append(make_node("Clip", name, [codes, *bounds], [out]))
        return out

    def _copy_for(self, nodes: Sequence[Node], tensor: Tensor, restored: Tensor) -> None:
        """Let float readers share one copy of ``restored``.

        A product of two dequantized activations would be fused unasked. And onnxruntime gives
        every reader a DQ of its own, and then no longer sees that the two ends of a SiLU or GELU
        read one tensor: the fused float kernel is lost. A Sum of one operand is a plain copy that
        it keeps, measured cheaper than one more DQ.
        """
        copy = variable(self._name(f"{tensor.name}_float_copy"), tensor, dtype=np.float32)
        self._graph.nodes.append(
            make_node("Sum", self._name(f"{tensor.name}/copy"), [restored], [copy])
        )
        _rewire(nodes, tensor, copy)

    def _publish(self, tensor: Tensor, restored: Tensor) -> None:
        """Give the graph output's name to what the user now reads: the dequantized tensor."""
        self._graph.outputs = [restored if out is tensor else out for out in self._graph.outputs]
        name = tensor.name
        tensor.name, restored.name = self._name(f"{name}_float"), name

    def _restore(
        self,
        tensor: Tensor,
        codes: Tensor,
        suffix: str,
        pair: tuple[Tensor, Tensor],
        *,
        axis: int | None = None,
    ) -> Tensor:
        name = f"{tensor.name}{suffix}"
        return self._append(
            "DequantizeLinear", codes, name, pair, np.float32, like=tensor, axis=axis
        )

    def _append(
        self, op: str, source: Tensor, name: str, pair: tuple[Tensor, Tensor], dtype: type, *,
        like: Tensor | None = None, axis: int | None = None,
    ) -> Tensor:  # fmt: skip
        out = variable(self._name(name), like if like is not None else source, dtype=dtype)
        attrs = {} if axis is None else {"axis": axis}
        self._graph.nodes.append(
            make_node(op, self._name(f"{name}/{op}"), [source, *pair], [out], attrs=attrs)
        )
        return out

    def _pair(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the scalar constants of ``grid``; tensors on one grid share them."""
        key = Grid(grid.scale, grid.zero_point, grid.bits)
        if key not in self._parameters:
            stem = f"grid_{len(self._parameters)}"
            self._parameters[key] = (
                constant(self._name(f"{stem}.scale"), np.array(grid.scale, np.float32)),
                constant(self._name(f"{stem}.zero_point"), np.array(grid.zero_point, np.uint8)),
            )
        return self._parameters[key]

    def _vector_pair(self, name: str, grid: Grid, size: int) -> tuple[Tensor, Tensor]:
        return (
            constant(self._name(f"{name}.scales"), np.full(size, grid.scale, np.float32)),
            constant(self._name(f"{name}.zero_points"), np.full(size, grid.zero_point, np.uint8)),
        )

    def _name(self, wanted: str) -> str:
        name = fresh(wanted, self._taken)
        self._taken.add(name)
        return name


def _rewire(nodes: Sequence[Node], old: Tensor, new: Tensor) -> None:
    for node in nodes:
        node.inputs = [new if tensor is old else tensor for tensor in node.inputs]


def _static_axis(tensor: Tensor) -> tuple[int, int]:
    """Return an axis of known length, channels first: equal scales along it change nothing."""
    shape = list(tensor.shape or ())
    order = [*sorted(range(1, len(shape)), key=lambda axis: axis != 1), 0]
    for axis in order if shape else []:
        if isinstance(shape[axis], int):
            return axis, shape[axis]
    raise PassError(f"no dim of tensor {tensor.name} is known", hint="give --input-shape")


def _multiplies(node: Node) -> bool:
    """Tell whether ``node``, seen through data movement, is a product of two activations."""
    if moves(node):
        return any(_multiplies(reader) for out in node.outputs for reader in out.outputs)
    return bool(node.op == "MatMul" and value(node.inputs[1]) is None)
