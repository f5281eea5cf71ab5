# SPDX-License-Identifier: Apache-2.0
"""QLinearConv: grouped, strided, dilated, padded with the zero point, any number of axes."""

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.kernels.integer.linear import exact_type, product_scale, wrapped
from qhyvit_onnx.kernels.integer.requantize import Codes, Grid, Quantized, Sums, requantize
from qhyvit_onnx.kernels.integer.window import Window, taps


def conv(
    x: Quantized,
    weight: Quantized,
    bias: Sums | None,
    out: Grid,
    window: Window,
    *,
    groups: int = 1,
) -> Codes:
    """Return the codes of a convolution on the grid ``out``.

    Shapes:
        x (N, *spatial, C); weight (M, C / groups, *kernel) with one grid, or one an output
        channel; bias (M,); result (N, *out, M).

    Units:
        bias in units of the sum: scale of x times scale of weight.

    Source:
        ONNX QLinearConv-10. The multiplier is ``float32(float32(sx * sw) / sy)``.
    """
    sums = conv_sums(x, weight, window, groups)
    if bias is not None:
        sums = sums + bias  # both 32 bits wide: wraps as the accumulator does
    return requantize(sums, product_scale(x.grid, weight.grid) / out.scale, out.zero)


def conv_sums(x: Quantized, weight: Quantized, window: Window, groups: int) -> Sums:
    """Return the integer sums of a convolution; shapes as in ``conv``."""
    outputs, per_group = weight.codes.shape[:2]
    last = Quantized(np.moveaxis(weight.codes, 0, -1), weight.grid)  # (C / groups, *kernel, M)
    kernel = np.moveaxis(last.steps(), 0, -2)  # (*kernel, C / groups, M)
    split = kernel.reshape(*window.kernel, per_group, groups, outputs // groups)
    add = _sum_depthwise if per_group == 1 else _sum_groups
    return add(x.steps(), split, window)  # zero in steps: the padding is the zero point


def _sum_depthwise(x: NDArray[np.int32], kernel: NDArray[np.int32], window: Window) -> Sums:
    """Add up windows where every output channel reads one input channel.

    Shapes:
        x (N, *spatial, G); kernel (*kernel, 1, G, M / G).
    """
    sums = np.zeros(1, np.int32)
    for index, seen in taps(x, window, 0):
        sums = sums + seen[..., None] * kernel[index][0]  # (N, *out, G, M / G)
    return sums.reshape(*sums.shape[:-2], -1)


def _sum_groups(x: NDArray[np.int32], kernel: NDArray[np.int32], window: Window) -> Sums:
    """Add up windows, one matrix product a position and group.

    Shapes:
        x (N, *spatial, C); kernel (*kernel, C / G, G, M / G).
    """
    groups, kind = kernel.shape[-2], exact_type(x, kernel, kernel.shape[-3])
    weights = np.moveaxis(kernel, -2, -3).astype(kind)  # (*kernel, G, C / G, M / G)
    sums = np.zeros(1)
    for index, seen in taps(x.astype(kind), window, 0):
        shape = seen.shape[:-1]
        rows = seen.reshape(-1, groups, weights.shape[-2]).swapaxes(0, 1)  # (G, positions, C / G)
        sums = sums + rows @ weights[index]
    return wrapped(sums.swapaxes(0, 1).reshape(*shape, -1))
