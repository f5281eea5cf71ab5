# SPDX-License-Identifier: Apache-2.0
"""Pooling: the mean or the maximum of sliding windows, or of all positions."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from qhyvit_onnx.kernels.ops.table import Result, kernel
from qhyvit_onnx.kernels.ops.windows import Ints, Pads, convolve, pad, spatial_pads

_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_MAXIMUM = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


class _Window(NamedTuple):
    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: Pads
    """What the model asks for."""
    extra: Pads
    """What ``ceil_mode`` lets the last windows see beyond that: never counted in a mean."""

    @property
    def all_pads(self) -> Pads:
        return [asked + more for asked, more in zip(self.pads, self.extra, strict=True)]


def _window(
    x: Tensor,
    kernel_shape: Ints,
    *,
    auto_pad: str,
    ceil_mode: int,
    dilations: Ints | None,
    pads: Ints | None,
    strides: Ints | None,
) -> _Window:
    """Return the window with every default filled in.

    Source:
        ONNX AveragePool-22, output_spatial_shape: with ceil_mode sizes round up, but no window may
        start in the padding at the end.
    """
    sizes, rank = x.shape[2:], len(kernel_shape)
    steps, gaps = list(strides or [1] * rank), list(dilations or [1] * rank)
    asked = spatial_pads(
        sizes, kernel_shape, auto_pad=auto_pad, pads=pads, strides=steps, dilations=gaps
    )
    extra = [0] * (2 * rank)
    for axis in range(rank if ceil_mode else 0):
        span = (kernel_shape[axis] - 1) * gaps[axis] + 1
        seen = sizes[axis] + asked[axis] + asked[rank + axis]
        windows = -(-(seen - span) // steps[axis]) + 1
        if (windows - 1) * steps[axis] >= sizes[axis] + asked[axis]:
            windows -= 1
        extra[rank + axis] = max((windows - 1) * steps[axis] + span - seen, 0)
    return _Window(list(kernel_shape), steps, gaps, asked, extra)


@kernel("AveragePool", since=7)
def average_pool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Average windows; padding counts only if ``count_include_pad``.

    Shapes:
        x (N, C, *size).
    """
    window = _window(
        x,
        kernel_shape,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        dilations=dilations,
        pads=pads,
        strides=strides,
    )
    means = _means(pad(x, window.all_pads), window)
    if not any(window.all_pads):
        return means
    ones = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    counted = pad(pad(ones, window.pads, float(count_include_pad)), window.extra)
    return means / _means(counted, window)


def _means(x: Tensor, window: _Window) -> Tensor:
    """Return the means of windows that lie inside x."""
    rank = len(window.kernel)
    if all(gap == 1 for gap in window.dilations):
        return _AVERAGE[rank](x, window.kernel, window.strides)
    planes = x.reshape(-1, 1, *x.shape[2:])  # torch's average knows no dilation: convolve planes
    weight = torch.full((1, 1, *window.kernel), 1 / math.prod(window.kernel)).to(x)
    y = convolve(planes, weight, strides=window.strides, dilations=window.dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


@kernel("MaxPool", since=1)
def max_pool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    storage_order: int = 0,
    strides: Ints | None = None,
    outputs: int,
) -> Result:
    """Return the maximum of windows, and where in the flattened x it was if asked.

    Shapes:
        x (N, C, *size).
    """
    window = _window(
        x,
        kernel_shape,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        dilations=dilations,
        pads=pads,
        strides=strides,
    )
    wide = x if x.is_floating_point() else x.double()  # torch pools floats only
    y, index = _MAXIMUM[len(window.kernel)](
        pad(wide, window.all_pads, -math.inf),
        window.kernel,
        window.strides,
        dilation=window.dilations,
        return_indices=True,
    )
    y = y.to(x.dtype)
    return y if outputs == 1 else (y, _flat_index(index, x, window.all_pads, storage_order))


def _flat_index(index: Tensor, x: Tensor, pads: Pads, storage_order: int) -> Tensor:
    """Turn indices into padded planes into indices into all of x.

    Within a plane the last axis runs fastest, or the first one with ``storage_order`` 1.
    """
    sizes, rank = x.shape[2:], x.ndim - 2
    padded = [size + pads[i] + pads[rank + i] for i, size in enumerate(sizes)]
    places = [
        place - before
        for place, before in zip(torch.unravel_index(index, padded), pads[:rank], strict=True)
    ]
    flat = torch.zeros_like(index)
    for axis in reversed(range(rank)) if storage_order else range(rank):
        flat = flat * sizes[axis] + places[axis]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device)
    return flat + planes.reshape(*x.shape[:2], *[1] * rank) * math.prod(sizes)


@kernel("GlobalAveragePool", since=1)
def global_average_pool(x: Tensor) -> Tensor:
    """Average all positions of a channel."""
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@kernel("GlobalMaxPool", since=1)
def global_max_pool(x: Tensor) -> Tensor:
    """Return the maximum over all positions of a channel."""
    return x.amax(list(range(2, x.ndim)), keepdim=True)


KERNELS = (average_pool, max_pool, global_average_pool, global_max_pool)
