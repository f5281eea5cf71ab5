# SPDX-License-Identifier: Apache-2.0
"""What a layer with weights multiplies at some places of its output, and what it writes there."""

from functools import singledispatch
from math import prod

import torch
from torch import Tensor

from qhyvit_onnx.kernels.ops.windows import spatial_pads
from qhyvit_onnx.kernels.probes import Stack, Window


@singledispatch
def places_of(geometry: Window | Stack, output: Tensor) -> int:
    """Return how many places ``output`` has: each is one row of the layer's matrix product."""
    raise TypeError(geometry)


@singledispatch
def read_at(geometry: Window | Stack, x: Tensor, output: Tensor, places: Tensor) -> Tensor:
    """Return what the layer multiplies at ``places``.

    Shapes:
        x: what the layer reads; output: of the shape that it writes; places (P,) in
        [0, places_of); result (P, groups, K), K in the order of the flattened weight of one
        output channel, zero where the window lies outside of x.
    """
    raise TypeError(geometry)


@singledispatch
def written_at(geometry: Window | Stack, output: Tensor, places: Tensor) -> Tensor:
    """Return ``output`` (or its gradient) at ``places``.

    Shapes:
        places (P,); result (P, groups, C_out / groups).
    """
    raise TypeError(geometry)


@places_of.register
def _(_geometry: Window, output: Tensor) -> int:
    return output.numel() // output.shape[1]


@written_at.register
def _(geometry: Window, output: Tensor, places: Tensor) -> Tensor:
    size = output.shape[2:]
    sample, inner = places // prod(size), places % prod(size)
    found = output.flatten(2)[sample, :, inner]  # (P, C_out)
    return found.reshape(len(places), geometry.groups, -1)


@read_at.register
def _(geometry: Window, x: Tensor, output: Tensor, places: Tensor) -> Tensor:
    sample, *starts = torch.unravel_index(places, (output.shape[0], *output.shape[2:]))
    index, inside = _elements(geometry, tuple(x.shape[2:]), starts)  # (P, taps)
    found = x.flatten(2)[sample[:, None], :, index]  # (P, taps, C_in)
    found = found.masked_fill(~inside[..., None], 0.0).transpose(1, 2)
    return found.reshape(len(places), geometry.groups, -1)


def _elements(window: Window, size: tuple[int, ...], starts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return which element of a map every tap of every window sees, and whether it is inside.

    Shapes:
        size: spatial dims of the map; starts: (P,) a spatial axis, positions in the output; both
        results (P, taps), elements counted along the flattened map.
    """
    pads = spatial_pads(
        size, window.kernel, auto_pad=window.auto_pad, pads=window.pads,
        strides=window.strides, dilations=window.dilations,
    )  # fmt: skip
    index = torch.zeros(len(starts[0]), 1, dtype=torch.int64, device=starts[0].device)
    inside = torch.ones_like(index, dtype=torch.bool)
    for axis, start in enumerate(starts):
        taps = torch.arange(window.kernel[axis], device=start.device) * window.dilations[axis]
        along = start[:, None] * window.strides[axis] - pads[axis] + taps  # (P, taps here)
        known = (along >= 0) & (along < size[axis])
        along = along.clamp(0, size[axis] - 1)
        index = (index[:, :, None] * size[axis] + along[:, None, :]).flatten(1)
        inside = (inside[:, :, None] & known[:, None, :]).flatten(1)
    return index, inside


@places_of.register
def _(geometry: Stack, output: Tensor) -> int:
    return output.numel() // (output.shape[-1] * prod(geometry.dims))


@written_at.register
def _(geometry: Stack, output: Tensor, places: Tensor) -> Tensor:
    return _stacked(geometry, output)[places]


@read_at.register
def _(geometry: Stack, x: Tensor, output: Tensor, places: Tensor) -> Tensor:
    return _stacked(geometry, x.expand(*output.shape[:-1], x.shape[-1]))[places]


def _stacked(geometry: Stack, x: Tensor) -> Tensor:
    """Return (..., dims of the stack, rows, width) as (places, groups, width).

    A dim of the stack that is 1 is broadcast: every place along it meets the same matrix.
    """
    ahead = x.ndim - 2 - len(geometry.dims)
    axes = [ahead + axis for axis, size in enumerate(geometry.dims) if size > 1]
    last = [x.ndim - 1 - len(axes) + place for place in range(len(axes))]
    return x.movedim(axes, last).reshape(-1, prod(geometry.dims), x.shape[-1])
