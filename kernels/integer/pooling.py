# SPDX-License-Identifier: Apache-2.0
"""QLinearGlobalAveragePool, QLinearAveragePool and MaxPool of codes; channels lie last."""

from math import prod

import numpy as np

from qhyvit_onnx.kernels.integer.requantize import (
    Codes,
    Float32,
    Grid,
    Quantized,
    dequantize,
    requantize,
    saturate,
)
from qhyvit_onnx.kernels.integer.window import Window, taps


def global_average_pool(x: Quantized, out: Grid) -> Codes:
    """Return the codes of the mean over all spatial axes, on the grid ``out``.

    Shapes:
        x (N, *spatial, C); result (N, 1, ..., 1, C).

    Source:
        MlasQLinearGlobalAveragePool: an integer sum, one rounding.
    """
    spatial = tuple(range(1, x.codes.ndim - 1))
    count = prod(x.codes.shape[1:-1])
    sums = x.steps().sum(axis=spatial, keepdims=True, dtype=np.int32)
    return requantize(sums, x.grid.scale / (out.scale * np.float32(count)), out.zero)


def average_pool(x: Quantized, out: Grid, window: Window, *, padding_counts: bool) -> Codes:
    """Return the codes of the mean over each window, on the grid ``out``.

    Numbers are summed in float32 in the order of the window, and the zero point is added before
    the rounding: ties go to the even code. ``padding_counts``: whether a mean over a border
    divides by the whole window.

    Shapes:
        x (N, *spatial, C); result (N, *out, C).

    Source:
        QLinearAveragePool of onnxruntime's contrib ops.
    """
    total = _in_order(dequantize(x), window)
    inside = np.ones((1, *x.codes.shape[1:-1], 1), np.float32)
    count = np.float32(prod(window.kernel)) if padding_counts else _in_order(inside, window)
    moved = np.rint(total / count / out.scale + out.zero.astype(np.float32))
    return saturate(moved, out.zero.dtype)


def max_pool(codes: Codes, window: Window) -> Codes:
    """Return the largest code of each window; what lies outside does not take part.

    Shapes:
        codes (N, *spatial, C); result (N, *out, C).
    """
    seen = taps(codes, window, np.iinfo(codes.dtype).min)
    _, best = next(seen)
    for _, other in seen:
        best = np.maximum(best, other)
    return np.ascontiguousarray(best)


def _in_order(x: Float32, window: Window) -> Float32:
    """Return the sum over each window, position after position."""
    total = np.zeros(1, np.float32)
    for _, seen in taps(x, window, 0.0):
        total = total + seen
    return np.asarray(total, np.float32)
