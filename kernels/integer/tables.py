# SPDX-License-Identifier: Apache-2.0
"""Functions of one code: a table of 256 results, made in float32; and softmax, made of one."""

from collections.abc import Callable, Sequence

import numpy as np

from qhyvit_onnx.kernels.integer.requantize import (
    Codes,
    Float32,
    Grid,
    Quantized,
    dequantize,
    quantize,
)

_P = (4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03,
      2.48287947061529e-01)  # fmt: skip
_Q = (6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03,
      1.16817656904453e-01, 9.93151921023180e-01)  # fmt: skip
_SATURATED = 18.0
"""Beyond this the logistic function is taken to be flat."""


def sigmoid(x: Quantized, out: Grid) -> Codes:
    """Return QLinearSigmoid: the logistic function of every code."""
    return _look_up(x, out, logistic)


def leaky_relu(x: Quantized, out: Grid, *, alpha: float) -> Codes:
    """Return QLinearLeakyRelu: slope ``alpha`` below zero."""
    slope = np.float32(alpha)
    return _look_up(x, out, lambda v: np.where(v >= 0, v, v * slope).astype(np.float32))


def concat(parts: Sequence[Quantized], out: Grid, *, axis: int) -> Codes:
    """Return QLinearConcat: every part moved to the grid ``out``, side by side."""
    moved = [
        part.codes if _same(part.grid, out) else _look_up(part, out, lambda v: v) for part in parts
    ]
    return np.asarray(np.concatenate(moved, axis=axis))


def softmax(x: Quantized, out: Grid, *, axis: int) -> Codes:
    """Return QLinearSoftmax along ``axis``.

    Exponentials come from a table that grows with the length of the axis, and are summed in
    order in float32; the scale of the result is used as the whole number ``floor(1 / scale)``.

    Error:
        none for axes of two and more; a single element overflows float32, here and there.

    Source:
        QLinearSoftmax of onnxruntime's contrib ops, opset 13 and later.
    """
    info = np.iinfo(x.codes.dtype)
    last = np.moveaxis(x.codes, axis, -1).astype(np.int32)
    table = _exponentials(float(x.grid.scale.reshape(-1)[0]), last.shape[-1])
    powers = table[last - last.max(axis=-1, keepdims=True) + 255]  # the largest is code 255
    total = np.add.accumulate(powers, axis=-1, dtype=np.float32)[..., -1:]
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.rint(powers * np.floor(np.float32(1.0) / out.scale) / total).astype(np.int32)
    codes = steps + out.zero.astype(np.int32)
    return np.moveaxis(np.asarray(np.minimum(codes, info.max)).astype(x.codes.dtype), -1, axis)


def logistic(x: Float32) -> Float32:
    """Return 1 / (1 + exp(-x)) by the rational function that onnxruntime uses, step by step.

    Error:
        to the true function 1e-7; to onnxruntime none where it fuses multiply and add.

    Source:
        MlasComputeLogistic, with the coefficients of Eigen.
    """
    x = np.clip(x, np.float32(-_SATURATED), np.float32(_SATURATED))
    square = np.asarray(x * x, np.float32)
    ratio = _polynomial(square, _P) * x / _polynomial(square, _Q)
    return np.asarray(np.clip(ratio + np.float32(0.5), 0.0, 1.0), np.float32)


def _polynomial(x: Float32, coefficients: Sequence[float]) -> Float32:
    """Return the polynomial in float32, every multiply-add rounded once; highest power first."""
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        exact = total.astype(np.float64) * x + np.float64(np.float32(coefficient))
        total = exact.astype(np.float32)
    return total


def _look_up(x: Quantized, out: Grid, function: Callable[[Float32], Float32]) -> Codes:
    """Return ``function`` of every code by a table of all of them."""
    every = np.arange(256, dtype=np.uint8).view(x.codes.dtype)
    table = quantize(function(dequantize(Quantized(every, x.grid))), out)
    return table[x.codes.view(np.uint8)]


def _same(grid: Grid, other: Grid) -> bool:
    return bool(grid.scale == other.scale and grid.zero == other.zero)


def _exponentials(scale: float, length: int) -> Float32:
    """Return exp of codes 0 to 255 times ``scale``, shifted so that ``length`` of them add up."""
    room = np.log(np.finfo(np.float32).max / np.float32(length))
    shift = max(0.0, float(room) - 5.0) / scale
    return np.exp((np.arange(256.0) - 255.0 + shift) * scale).astype(np.float32)
