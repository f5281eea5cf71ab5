# SPDX-License-Identifier: Apache-2.0
"""Int8 weights and int32 biases behind DequantizeLinear."""

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.facts import Grids
from qhyvit_onnx.graph import Graph, Tensor, constant, fresh, make_node, names, variable
from qhyvit_onnx.grid import WeightGrid
from qhyvit_onnx.units import Kind, Unit


class WeightWriter:
    """Writes each layer's weight on its own grid: a weight that two layers share stays correct."""

    def __init__(self, graph: Graph, grids: Grids) -> None:
        """Nothing is written yet."""
        self._graph, self._grids, self._taken = graph, grids, names(graph)

    def write(self, unit: Unit) -> None:
        """Put the weight and the bias of ``unit`` behind DQ."""
        grid = self._grids.weights[unit.name]
        codes = self._grids.codes_of(unit)
        unit.node.inputs[1] = self._behind_dq(f"{unit.name}.weight", codes, grid.scale, grid.axis)
        if unit.bias is not None:
            bias = self._bias(unit, grid) if rounds_bias(unit) else self._float_bias(unit)
            holder = unit.nodes[1] if unit.kind is Kind.MATMUL else unit.node
            holder.inputs = [bias if tensor is unit.bias else tensor for tensor in holder.inputs]

    def _bias(self, unit: Unit, grid: WeightGrid) -> Tensor:
        """Return the bias as int32 codes of ``s_x * s_w[c]``: any other scale is wrong in QGemm."""
        bias = self._grids.bias_of(unit).astype(np.float64).reshape(-1)
        step = np.float32(self._grids.activations[unit.inputs[0].name].scale) * grid.scale
        step = np.broadcast_to(step, bias.shape).astype(np.float32)
        codes = np.rint(bias / step).astype(np.int32)
        return self._behind_dq(f"{unit.name}.bias", codes, step, 0)

    def _float_bias(self, unit: Unit) -> Tensor:
        """Return the bias as (1, ..., 1, N): added in float, and no pattern of a float Gemm."""
        rank, bias = len(unit.inputs[0].shape or ()), self._grids.bias_of(unit)
        if not rank:  # onnxruntime needs the shape for that pattern too
            return constant(self._name(f"{unit.name}.bias"), bias)
        return constant(self._name(f"{unit.name}.bias"), bias.reshape(*(1,) * (rank - 1), -1))

    def _behind_dq(
        self, name: str, codes: NDArray[np.integer], scale: NDArray[np.float32], axis: int
    ) -> Tensor:
        per_tensor = scale.size == 1 and codes.ndim != 1
        steps = scale.reshape(()) if per_tensor else scale
        zero = np.zeros(steps.shape, codes.dtype)
        parts = [("", codes), (".scale", steps), (".zero_point", zero)]
        inputs = [constant(self._name(f"{name}_q{suffix}"), array) for suffix, array in parts]
        out = variable(self._name(f"{name}_dq"), dtype=np.float32)
        attrs = {} if per_tensor else {"axis": axis}
        self._graph.nodes.append(
            make_node("DequantizeLinear", self._name(f"{name}/dq"), inputs, [out], attrs=attrs)
        )
        return out

    def _name(self, wanted: str) -> str:
        name = fresh(wanted, self._taken)
        self._taken.add(name)
        return name


def rounds_bias(unit: Unit) -> bool:
    """Tell whether the bias of an int8 layer becomes int32: it is added as floats otherwise.

    onnxruntime rewrites MatMul + Add to QGemm for matrices, and for more dims only when it knows
    all of them.
    """
    if unit.kind is not Kind.MATMUL:
        return True
    shape = list(unit.inputs[0].shape or ())
    return len(shape) == 2 or (bool(shape) and all(isinstance(dim, int) for dim in shape))
