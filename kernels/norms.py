# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of folding a per-channel scale and offset into the linear layer beside it."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


class Affine(NamedTuple):
    """y = x * gain + offset, channel by channel.

    Shapes: both (C,), or (1,) for one number that serves every channel; float64.
    """

    gain: NDArray[np.float64]
    offset: NDArray[np.float64]


class Layer(NamedTuple):
    """A linear layer's constants.

    Shapes: weight with its outputs along ``axis`` and its inputs along ``input_axis``; bias (C,),
    or None. With ``groups`` > 1 the weight is (C_out, C_in / groups, *kernel), or, when ``axis`` is
    1 (ConvTranspose), (C_in, C_out / groups, *kernel).
    """

    weight: Array
    bias: Array | None
    axis: int = 0
    groups: int = 1
    input_axis: int = 1
    alpha: float = 1.0
    """Factor of the product, not of the bias (Gemm)."""


def norm_affine(gamma: Array, beta: Array, mean: Array, var: Array, *, eps: float) -> Affine:
    """Return what BatchNormalization does to each channel.

    Shapes: every array (C,).

    Source:
        ONNX BatchNormalization-15 with training_mode = 0:
        y = (x - mean) / sqrt(var + eps) * gamma + beta.
    """
    gain = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + eps)
    return Affine(gain, beta.astype(np.float64) - mean.astype(np.float64) * gain)


def fold_affine(layer: Layer, affine: Affine) -> tuple[Array, Array | None]:
    """Return (weight, bias) of one layer equal to ``layer`` followed by ``affine``.

    The weight comes back as the same object when the gain is one, and no bias is made where the
    offset is zero.

    Error:
        Computed in float64 and rounded once to the dtype of the weight.
    """
    weight, bias = layer.weight, layer.bias
    if np.any(affine.gain != 1.0):
        weight = (weight * _spread(affine.gain, layer)).astype(layer.weight.dtype)
    if bias is None and not np.any(affine.offset):
        return weight, None
    start = np.zeros(1) if bias is None else bias.astype(np.float64)
    total = start * affine.gain + affine.offset
    return weight, np.broadcast_to(total, (channels(layer),)).astype(layer.weight.dtype)


def absorb_affine(layer: Layer, affine: Affine) -> tuple[Array, Array | None]:
    """Return (weight, bias) of one layer equal to ``affine`` followed by ``layer``.

    Shapes:
        gain and offset (C_in,).

    Error:
        Computed in float64 and rounded once to the dtype of the weight. The offset is taken to
        reach every output through the whole weight: without padding, without a stack of weights,
        and from a transposed kernel only where it is 1x1. Elsewhere it must be zero.
    """
    weight, bias = layer.weight, layer.bias
    if np.any(affine.offset):
        added = layer.alpha * _summed(weight * columns(affine.offset, layer), layer)
        start = np.zeros(1) if bias is None else bias.astype(np.float64)
        total = np.broadcast_to(start + added, (channels(layer),))
        bias = total.astype(layer.weight.dtype)
    if np.any(affine.gain != 1.0):
        weight = (weight * columns(affine.gain, layer)).astype(layer.weight.dtype)
    return weight, bias


def columns(values: NDArray[np.float64], layer: Layer) -> NDArray[np.float64]:
    """Return ``values`` (C_in,) shaped to multiply the weight of ``layer`` input by input."""
    shape = [1] * layer.weight.ndim
    if layer.axis == 0 and layer.groups > 1:
        # (G, C_in/G) -> one row for each of the C_out/G outputs of a group: (C_out, C_in/G, 1, ...)
        outputs = layer.weight.shape[0] // layer.groups
        rows = np.repeat(values.reshape(layer.groups, -1), outputs, axis=0)
        return rows.reshape(*rows.shape, *shape[2:])
    shape[layer.input_axis] = -1
    return values.reshape(shape)


def _summed(weight: NDArray[np.float64], layer: Layer) -> NDArray[np.float64]:
    """Return the sum of ``weight`` over everything but the outputs: (C_out,)."""
    if layer.axis == 1 and layer.groups > 1:  # (C_in, C_out/G, ...) -> (G, C_in/G, C_out/G, ...)
        apart = weight.reshape(layer.groups, -1, weight.shape[1], weight[0, 0].size)
        return np.asarray(apart.sum(axis=(1, 3)).reshape(-1))
    others = tuple(axis for axis in range(weight.ndim) if axis != layer.axis)
    out: NDArray[np.float64] = weight.sum(axis=others)
    return out


def channels(layer: Layer) -> int:
    """Return the number of outputs of ``layer``."""
    grouped = layer.groups if layer.axis == 1 else 1
    return int(layer.weight.shape[layer.axis]) * grouped


def _spread(gain: NDArray[np.float64], layer: Layer) -> NDArray[np.float64]:
    """Return ``gain`` shaped to multiply the weight of ``layer``."""
    shape = [1] * layer.weight.ndim
    if gain.size == 1:
        return gain.reshape(shape)
    shape[layer.axis] = layer.weight.shape[layer.axis]
    if layer.axis != 1 or layer.groups == 1:
        return gain.reshape(shape)
    # (G, C_out/G) -> one row for each of the C_in/G inputs of a group: (C_in, C_out/G, 1, ...)
    rows = np.repeat(gain.reshape(layer.groups, -1), layer.weight.shape[0] // layer.groups, axis=0)
    return rows.reshape(layer.weight.shape[0], *shape[1:])
