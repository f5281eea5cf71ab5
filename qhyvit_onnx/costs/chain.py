# SPDX-License-Identifier: Apache-2.0
"""Builds small models, one unit after the other, and keeps account of what they are made of.

Q and DQ are written where a unit in one form meets a unit in the other, as ``insert_qdq`` would;
they are counted, and so is every change of memory layout at the border of a run of convolutions.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qhyvit_onnx.costs.sizes import runs
from qhyvit_onnx.costs.table import (
    DEPTHWISE_3X3,
    DEQUANTIZE,
    MOVING,
    QUANTIZE,
    float_key,
    int8_key,
    layout_key,
)
from qhyvit_onnx.kinds import Kind

INPUT = "x"
PLAIN = "plain"
OPSET = 17
"""That of most exported models. From 19 on AveragePool has a slower float kernel."""
_SCALE, _MIDDLE = 0.05, 128


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the model: in float, or dequantized from codes."""

    name: str
    shape: tuple[int, ...]
    integer: bool = False
    layout: str = PLAIN

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass
class Chain:
    """A model that grows at its end.

    Every method appends one unit that reads ``value``, in int8 if ``integer``, and counts it in
    ``terms``: by key of a cost table, how often, multiply-adds and elements in all.
    """

    shape: tuple[int, ...]
    seed: int = 0
    terms: Counter[str] = field(default_factory=Counter)
    macs: Counter[str] = field(default_factory=Counter)
    elements: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Start with the float input."""
        self._rng = np.random.default_rng(self.seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self.start = self.value = Value(INPUT, self.shape)

    def model(self) -> onnx.ModelProto:
        """Return the model so far; its output is ``value``."""
        inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, self.shape)]
        end = self.value
        outputs = [helper.make_tensor_value_info(end.name, TensorProto.FLOAT, end.shape)]
        graph = helper.make_graph(
            self._nodes, "chain", inputs, outputs, list(self._constants.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def conv(
        self, kind: Kind, channels: int, kernel: int, *, integer: bool, group: int = 1,
        relu: bool = False,
    ) -> None:  # fmt: skip
        """Append a convolution of stride 1 that keeps the size of the map."""
        read = self._read("nhwc" if integer else "blocked", integer=integer)
        depth = read.shape[1] // group
        weight = self._array((channels, depth, kernel, kernel))
        shape = (read.shape[0], channels, *read.shape[2:])
        attrs = {"group": group, "pads": [kernel // 2] * 4, "kernel_shape": [kernel] * 2}
        out = self._node("Conv", [read.name, *self._layer(weight, 0, integer=integer)], attrs)
        if relu:
            out = self._node("Relu", [out])
        self._write(out, shape, read, zero_point=0 if relu else _MIDDLE)
        row = DEPTHWISE_3X3 if (kind, kernel) == (Kind.DEPTHWISE, 3) else kind
        macs = prod(shape) * depth * kernel**2
        parts = group
        self._count(row, read, macs, read.elements + prod(shape), parts)

    def linear(
        self, columns: int, *, integer: bool, kind: Kind = Kind.MATMUL, floats: bool = False
    ) -> None:
        """Append a product with a constant weight: Gemm, or MatMul and Add; with a bias.

        With ``floats`` it has no bias, and the integer kernel writes floats.
        """
        read = self._read(PLAIN, integer=integer)
        weight = self._array((read.shape[-1], columns))
        shape = (*read.shape[:-1], columns)
        operands = self._layer(weight, 1, integer=integer)
        if kind is Kind.GEMM:
            out = self._node("Gemm", [read.name, *operands])
        else:
            out = self._node("MatMul", [read.name, operands[0]])
            out = out if floats else self._node("Add", [out, operands[1]])
        self._write(out, shape, replace(read, integer=read.integer and not floats))
        macs = prod(shape) * read.shape[-1]
        self._count(kind, read, macs, read.elements + prod(shape) + weight.size)

    def attention(self, *, integer: bool) -> None:
        """Append the product of ``value`` with its own transpose, and of that with ``value``."""
        read = self._read(PLAIN, integer=integer)
        rank = len(read.shape)
        turned = self._node(
            "Transpose", [read.name], {"perm": [*range(rank - 2), rank - 1, rank - 2]}
        )
        rows, depth = read.shape[-2:]
        square = (*read.shape[:-1], rows)
        self._write(self._node("MatMul", [read.name, turned]), square, read)
        self._write(self._node("MatMul", [self.value.name, read.name]), read.shape, read)
        for _ in range(2):
            self._count(Kind.PRODUCT, read, prod(square) * depth, 2 * read.elements + prod(square))

    def silu(self, *, integer: bool, kind: Kind = Kind.SILU) -> None:
        """Append x * Sigmoid(x); onnxruntime's float kernel of it takes no blocked layout."""
        read = self._read(self.value.layout if integer else PLAIN, integer=integer)
        gate = self._node("Sigmoid", [read.name])
        if integer:
            gate = self._codes(gate, 0)
        self._write(self._node("Mul", [read.name, gate]), read.shape, read)
        self._count(kind, read, 0, 2 * read.elements)

    def gelu(self, *, integer: bool) -> None:
        """Append a GELU: on integers with the kernels of SiLU, on other grids."""
        if integer:
            self.silu(integer=True, kind=Kind.GELU)
        else:
            self.unary(Kind.GELU, "Gelu", domain="com.microsoft")

    def unary(
        self, kind: Kind | str, op: str, *, integer: bool = False, **attrs: int | str
    ) -> None:
        """Append ``op`` of one operand, with its attributes or its domain."""
        read = self._read(self._kept(integer=integer), integer=integer)
        self._write(self._node(op, [read.name], attrs), read.shape, read)
        self._count(kind, read, 0, 2 * read.elements)

    def pair(self, kind: Kind, op: str, other: Value, *, integer: bool) -> None:
        """Append ``op`` of ``value`` and ``other``, which broadcasts to it."""
        read = self._read(self._kept(integer=integer), integer=integer)
        self._write(self._node(op, [read.name, other.name]), read.shape, read)
        self._count(kind, read, 0, 2 * read.elements + other.elements)

    def concat(self, other: Value, *, integer: bool) -> None:
        """Append a Concat of ``value`` and ``other`` along the channels."""
        read = self._read(self._kept(integer=integer), integer=integer)
        shape = (read.shape[0], read.shape[1] + other.shape[1], *read.shape[2:])
        self._write(
            self._node("Concat", [read.name, other.name], {"axis": 1}), shape, read, integer
        )
        self._count(Kind.CONCAT, read, 0, 2 * prod(shape))

    def pool(self, kernel: int, *, integer: bool) -> None:
        """Append an average over windows that keeps the size of the map."""
        read = self._read(self._kept(integer=integer), integer=integer)
        attrs = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4}
        self._write(self._node("AveragePool", [read.name], attrs), read.shape, read)
        self._count(Kind.POOL, read, read.elements * kernel**2, 0)

    def gate(self, *, integer: bool) -> None:
        """Append a product with ``value``'s own mean over space."""
        read = self._read(self._kept(integer=integer), integer=integer)
        mean = self._node("GlobalAveragePool", [read.name])
        if integer:
            mean = self._codes(mean, _MIDDLE)
        channels = prod(read.shape[:2])
        self._write(self._node("Mul", [read.name, mean]), read.shape, read)
        self._count(Kind.POOL, read, 0, read.elements + channels)
        self._count(Kind.MUL, read, 0, 2 * read.elements + channels)

    def norm(self) -> None:
        """Append a LayerNormalization over the last axis."""
        read = self._read(PLAIN, integer=False)
        scale = self._constant(np.ones(read.shape[-1], np.float32))
        self._write(self._node("LayerNormalization", [read.name, scale]), read.shape, read)
        self._count("norm", read, 0, 2 * read.elements)

    def reshape(self, *shape: int) -> None:
        """Append a Reshape: a view, which touches no element."""
        read = self._read(PLAIN, integer=False)
        operand = self._constant(np.array(shape, np.int64))
        self._write(self._node("Reshape", [read.name, operand]), shape, read)
        self._count(MOVING, read, 0, 0)

    def transpose(self, *order: int) -> None:
        """Append a Transpose."""
        read = self._read(PLAIN, integer=False)
        shape = [read.shape[axis] for axis in order]
        self._write(self._node("Transpose", [read.name], {"perm": order}), shape, read)
        self._count(MOVING, read, runs(order, shape), 2 * read.elements)

    def quantized(self) -> Value:
        """Return ``value`` as codes dequantized, and count the Q."""
        self.value = self._read(self.value.layout, integer=True)
        return self.value

    def _kept(self, *, integer: bool) -> str:
        """Return the layout of what follows the layout of its input, if its form has that."""
        return self.value.layout if self.value.integer is integer else PLAIN

    def _read(self, layout: str, *, integer: bool) -> Value:
        value = self.value
        for left in {value.layout, layout} - {PLAIN} if value.layout != layout else ():
            self._tally(layout_key(left), 0, value.elements)
        if value.integer and not integer:
            self._tally(DEQUANTIZE, 0, value.elements)
        name = value.name
        if integer and not value.integer:
            self._tally(QUANTIZE, 0, value.elements)
            name = self._codes(name, _MIDDLE)
        return Value(name, value.shape, integer, layout)

    def _write(
        self, name: str, shape: Sequence[int], read: Value, zero_point: int = _MIDDLE
    ) -> None:
        """Take ``name`` for the value, in the form and layout of what was read for it."""
        name = self._codes(name, zero_point) if read.integer else name
        self.value = replace(read, name=name, shape=tuple(shape))

    def _count(
        self, kind: Kind | str, read: Value, macs: int, elements: int, parts: int = 1
    ) -> None:
        self._tally((int8_key if read.integer else float_key)(kind), macs, elements, parts)

    def _tally(self, key: str, macs: int, elements: int, parts: int = 1) -> None:
        self.terms[key] += parts
        self.macs[key] += macs
        self.elements[key] += elements

    def _codes(self, name: str, zero_point: int) -> str:
        """Append Q and DQ; every Q has a scale of its own, so that none is merged with another."""
        scale = np.array(_SCALE * (1 + 1e-4 * len(self._nodes)), np.float32)
        grid = [self._constant(scale), self._constant(np.array(zero_point, np.uint8))]
        return self._node("DequantizeLinear", [self._node("QuantizeLinear", [name, *grid]), *grid])

    def _layer(self, weight: NDArray[np.float32], axis: int, *, integer: bool) -> list[str]:
        """Return the operands of weight and bias."""
        columns = weight.shape[axis]
        bias = self._constant(np.zeros(columns, np.float32))
        if not integer:
            return [self._constant(weight), bias]
        codes = self._rng.integers(-127, 128, weight.shape, np.int8)
        steps = self._constant(np.full(columns, 1e-3, np.float32))
        weights = self._node(
            "DequantizeLinear",
            [self._constant(codes), steps, self._constant(np.zeros(columns, np.int8))],
            {"axis": axis},
        )
        return [weights, bias]

    def _array(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return self._rng.normal(0, prod(shape[1:]) ** -0.5, shape).astype(np.float32)

    def _constant(self, array: NDArray[Any]) -> str:
        name = f"c{len(self._constants)}"
        self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def _node(self, op: str, inputs: Sequence[str], attrs: Mapping[str, Any] | None = None) -> str:
        name = f"{op}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **(attrs or {})))
        return name
