# SPDX-License-Identifier: Apache-2.0
"""Sliding windows: how far they see beyond the edges of their input, and sums over them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

Ints = Sequence[int]
Pads = list[int]
"""ONNX order: the beginnings of all axes, then their ends."""


def spatial_pads(
    sizes: Ints,
    kernel: Ints,
    *,
    auto_pad: str,
    pads: Ints | None,
    strides: Ints,
    dilations: Ints,
) -> Pads:
    """Return the pads of a sliding window.

    Shapes:
        one number per spatial axis in every list; ``pads`` and the result two.

    Source:
        ONNX Conv-11 auto_pad: SAME_UPPER and SAME_LOWER make ceil(size / stride) outputs and put
        an odd pad at the end or at the beginning.
    """
    if auto_pad in ("", "NOTSET"):
        return list(pads) if pads is not None else [0] * (2 * len(sizes))
    if auto_pad == "VALID":
        return [0] * (2 * len(sizes))
    begins, ends = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        span = (width - 1) * dilation + 1
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        begins.append(total // 2 if auto_pad == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return begins + ends


def pad(x: Tensor, pads: Ints, value: float = 0.0) -> Tensor:
    """Pad the last axes of ``x`` with ``value``; negative pads crop."""
    if not any(pads):
        return x
    half = len(pads) // 2
    pairs = [n for axis in reversed(range(half)) for n in (pads[axis], pads[half + axis])]
    return functional.pad(x, pairs, value=value)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Ints,
    dilations: Ints,
    pads: Ints | None = None,
    groups: int = 1,
    transposed: bool = False,
) -> Tensor:
    """Convolve any number of spatial axes, or do the transpose of it.

    Shapes:
        x (N, C_in, *size); weight (C_out, C_in / groups, *kernel), or, transposed,
        (C_in, C_out / groups, *kernel); bias (C_out,); pads one a spatial axis, for both its ends.
    """
    none = [0] * (x.ndim - 2)
    return torch.convolution(
        x, weight, bias, strides, pads or none, dilations, transposed, none, groups
    )
