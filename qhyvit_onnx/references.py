# SPDX-License-Identifier: Apache-2.0
"""What one node of an optimized graph must write, from the arrays it reads.

A node is read as onnxruntime writes it: channels may lie last, pads may be automatic, optional
inputs may be absent. What only moves elements is left to ONNX's own reference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from qhyvit_onnx.graph import MOVEMENT
from qhyvit_onnx.kernels.integer.convolution import conv
from qhyvit_onnx.kernels.integer.elementwise import add, mul
from qhyvit_onnx.kernels.integer.linear import gemm, matmul, matmul_to_float
from qhyvit_onnx.kernels.integer.machine import Machine
from qhyvit_onnx.kernels.integer.pooling import average_pool, global_average_pool, max_pool
from qhyvit_onnx.kernels.integer.requantize import Grid, Quantized, dequantize, quantize
from qhyvit_onnx.kernels.integer.tables import concat, leaky_relu, sigmoid, softmax
from qhyvit_onnx.kernels.integer.window import Window, same_pads
from qhyvit_onnx.pattern import Miss

Array: TypeAlias = NDArray[Any]

_UINT8 = np.dtype(np.uint8)


class _Unable(Exception):  # noqa: N818
    """A node is beyond its reference kernel; the text says why."""


@dataclass(frozen=True, slots=True)
class Call:
    """One node, and what it read in one run."""

    node: onnx.NodeProto
    inputs: Sequence[Array | None]
    """None for an optional input that is absent."""
    opset: int
    """Version of the default operator set."""
    machine: Machine

    def attr(self, name: str, default: Any = None) -> Any:  # noqa: ANN401  as ONNX has it
        """Return an attribute."""
        found = (item for item in self.node.attribute if item.name == name)
        return next((onnx.helper.get_attribute_value(item) for item in found), default)

    def optional(self, index: int) -> Array | None:
        """Return an input; None when it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def arg(self, index: int) -> Array:
        """Return an input that the operator always has."""
        found = self.optional(index)
        if found is None:
            raise _Unable(f"input {index} is absent")
        return found

    def grid(self, scale: int, zero: int, codes: np.dtype[Any] = _UINT8) -> Grid:
        """Return the grid at two inputs; an absent zero point is the code 0 of type ``codes``."""
        given = self.optional(zero)
        if self.arg(scale).dtype != np.float32:
            raise _Unable(f"scale in {self.arg(scale).dtype}")
        return Grid(self.arg(scale), np.zeros((), codes) if given is None else given)

    def quantized(self, codes: int, scale: int, zero: int) -> Quantized:
        """Return the codes and their grid at three inputs."""
        return Quantized(self.arg(codes), self.grid(scale, zero, self.arg(codes).dtype))

    def image(self) -> Array:
        """Return the first input with its channels last."""
        return self.arg(0) if self.channels_last() else np.moveaxis(self.arg(0), 1, -1)

    def as_written(self, y: Array) -> Array:
        """Return a result whose channels lie last in the layout that the node writes."""
        return y if self.channels_last() else np.moveaxis(y, -1, 1)

    def channels_last(self) -> bool:
        """Tell whether the node is one that a layout change made."""
        return self.node.op_type.startswith("Nhwc") or bool(self.attr("channels_last", 0))

    def window(self, spatial: tuple[int, ...], kernel: tuple[int, ...] = ()) -> Window:
        """Return the window over an input of size ``spatial``; ``kernel`` where none is given."""
        kernel = tuple(self.attr("kernel_shape", kernel))
        ones = (1,) * len(kernel)
        pads = self.attr("pads", (0,) * 2 * len(kernel))
        window = Window(
            kernel,
            tuple(self.attr("strides", ones)),
            tuple(self.attr("dilations", ones)),
            tuple(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)),
            bool(self.attr("ceil_mode", 0)),
        )
        auto = self.attr("auto_pad", b"NOTSET").decode()
        if not auto.startswith("SAME"):
            return window
        same = same_pads(spatial, window, extra_before=auto == "SAME_LOWER")
        return window._replace(pads=same)


Reference: TypeAlias = Callable[[Call], Array]


def reference(call: Call) -> list[Array] | Miss:
    """Return what the node must write, one array an output; a Miss when there is no kernel for it.

    Error:
        none, within what the kernels state: the arrays are those of onnxruntime, bit for bit.
    """
    node = call.node
    if node.op_type in _ONNX and node.domain in {"", "ai.onnx"}:
        return _by_onnx(call)
    kernel = REFERENCES.get(node.op_type)
    if kernel is None:
        return Miss("no reference kernel", node.name)
    try:
        made = kernel(call)
    except _Unable as why:
        return Miss(str(why), node.name)
    if len(node.output) > 1:
        return Miss("a second output", node.name)
    return [made]


def _quantize(call: Call) -> Array:
    if call.attr("block_size", 0) or call.arg(0).dtype != np.float32:
        raise _Unable(f"blocks, or {call.arg(0).dtype} input")
    return quantize(call.arg(0), call.grid(1, 2), axis=call.attr("axis", 1))


def _dequantize(call: Call) -> Array:
    if call.attr("block_size", 0):
        raise _Unable("blocks")
    return dequantize(call.quantized(0, 1, 2), axis=call.attr("axis", 1))


def _conv(call: Call) -> Array:
    x = Quantized(call.image(), call.grid(1, 2))
    weight = call.quantized(3, 4, 5)
    window = call.window(x.codes.shape[1:-1], weight.codes.shape[2:])
    groups = call.attr("group", 1)
    return call.as_written(
        conv(x, weight, call.optional(8), call.grid(6, 7), window, groups=groups)
    )


def _gemm(call: Call) -> Array:
    a, b = call.quantized(0, 1, 2), call.quantized(3, 4, 5)
    a = Quantized(a.codes.T, a.grid) if call.attr("transA", 0) else a
    b = Quantized(b.codes.T, b.grid) if call.attr("transB", 0) else b
    out = None if call.optional(7) is None else call.grid(7, 8)
    return gemm(a, b, call.optional(6), out, alpha=call.attr("alpha", 1.0))


def _matmul(call: Call) -> Array:
    return matmul(call.quantized(0, 1, 2), call.quantized(3, 4, 5), call.grid(6, 7))


def _matmul_to_float(call: Call) -> Array:
    a, b = call.quantized(0, 2, 4), call.quantized(1, 3, 5)
    return matmul_to_float(a, b, call.optional(6), call.machine)


def _add(call: Call) -> Array:
    a, b = call.quantized(0, 1, 2), call.quantized(3, 4, 5)
    return add(a, b, call.grid(6, 7, a.codes.dtype), call.machine)


def _mul(call: Call) -> Array:
    a, b = call.quantized(0, 1, 2), call.quantized(3, 4, 5)
    return mul(a, b, call.grid(6, 7, a.codes.dtype), call.machine)


def _sigmoid(call: Call) -> Array:
    return sigmoid(call.quantized(0, 1, 2), call.grid(3, 4, call.arg(0).dtype))


def _leaky_relu(call: Call) -> Array:
    out = call.grid(3, 4, call.arg(0).dtype)
    return leaky_relu(call.quantized(0, 1, 2), out, alpha=call.attr("alpha", 0.01))


def _softmax(call: Call) -> Array:
    if call.attr("opset") < 13:
        raise _Unable("softmax of opset 12: over all axes from one on")
    out = call.grid(3, 4, call.arg(0).dtype)
    return softmax(call.quantized(0, 1, 2), out, axis=call.attr("axis", -1))


def _concat(call: Call) -> Array:
    parts = [call.quantized(at, at + 1, at + 2) for at in range(2, len(call.inputs), 3)]
    return concat(parts, call.grid(0, 1), axis=call.attr("axis"))


def _global_average_pool(call: Call) -> Array:
    x = Quantized(call.image(), call.grid(1, 2))
    return call.as_written(global_average_pool(x, call.grid(3, 4)))


def _average_pool(call: Call) -> Array:
    x = Quantized(call.image(), call.grid(1, 2))
    counts = bool(call.attr("count_include_pad", 0))
    window = call.window(x.codes.shape[1:-1])
    return call.as_written(average_pool(x, call.grid(3, 4), window, padding_counts=counts))


def _max_pool(call: Call) -> Array:
    image = call.image()
    return call.as_written(max_pool(image, call.window(image.shape[1:-1])))


REFERENCES: Mapping[str, Reference] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "QLinearConv": _conv,
    "QGemm": _gemm,
    "QLinearMatMul": _matmul,
    "MatMulIntegerToFloat": _matmul_to_float,
    "QLinearAdd": _add,
    "QLinearMul": _mul,
    "QLinearSigmoid": _sigmoid,
    "QLinearLeakyRelu": _leaky_relu,
    "QLinearSoftmax": _softmax,
    "QLinearConcat": _concat,
    "QLinearGlobalAveragePool": _global_average_pool,
    "QLinearAveragePool": _average_pool,
    "MaxPool": _max_pool,
    "NhwcMaxPool": _max_pool,
}
"""Every kernel by the op that onnxruntime runs."""

_ONNX = MOVEMENT - {"MaxPool"} | {"Concat", "GatherElements", "Identity"}
"""Ops that pick and place elements, whatever they are."""


def _by_onnx(call: Call) -> list[Array] | Miss:
    """Run a node that only moves elements by ONNX's own definition of it."""
    node = call.node
    given = {n: x for n, x in zip(node.input, call.inputs, strict=True) if x is not None}
    infos = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape
        )
        for name, x in given.items()
    ]
    made = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = onnx.helper.make_graph([node], "node", infos, made)
    opset = onnx.helper.make_opsetid("", call.opset)
    model = onnx.helper.make_model(graph, opset_imports=[opset])
    try:
        return list(ReferenceEvaluator(model).run(None, given))
    except Exception as error:  # it raises whatever numpy does
        return Miss(f"ONNX's reference cannot run it: {error}", node.name)
