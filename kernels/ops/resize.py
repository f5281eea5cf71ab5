# SPDX-License-Identifier: Apache-2.0
"""Resize and Upsample: the sizes they ask for, axis by axis."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qhyvit_onnx.kernels.ops.resampling import Extent, Sampling, resample
from qhyvit_onnx.kernels.ops.table import kernel

Floats = Sequence[float]
Ints = Sequence[int]


@kernel("Upsample", since=7)
def upsample_attribute(x: Tensor, *, scales: Floats, mode: str = "nearest") -> Tensor:
    """Resample by the factors given."""
    return _resize_by_corner(x, scales, mode)


@kernel("Upsample", since=9, host=(1,))
def upsample(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    """Resample by the factors given."""
    return _resize_by_corner(x, scales.tolist(), mode)


@kernel("Resize", since=10, host=(1,))
def resize_by_corner(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    """Resample by the factors given."""
    return _resize_by_corner(x, scales.tolist(), mode)


def _resize_by_corner(x: Tensor, scales: Floats, mode: str) -> Tensor:
    """Resample with elements at the corners of their cells, as was the rule before opset 11.

    The nearest element is the one below where an axis grows, the one above where it shrinks.
    """
    for axis, extent in _extents(x, list(scales), None, list(range(x.ndim))):
        how = Sampling(
            mode=mode,
            coordinates="asymmetric",
            nearest_mode="floor" if extent.scale >= 1 else "ceil",
        )
        x = resample(x, axis, extent, how)
    return x


@kernel("Resize", since=11, host=(1, 2, 3))
def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: Ints | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Resample some axes, to sizes or by factors.

    Error:
        integers are interpolated in float32 and truncated.
    """
    how = Sampling(
        mode=mode,
        nearest_mode=nearest_mode,
        coordinates=coordinate_transformation_mode,
        cubic_a=cubic_coeff_a,
        exclude_outside=bool(exclude_outside),
        antialias=bool(antialias),
        extrapolation=extrapolation_value,
    )
    along = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
    factors = scales.tolist() if scales is not None and scales.numel() else None
    targets = sizes.tolist() if sizes is not None and sizes.numel() else None
    window = roi.tolist() if roi is not None and roi.numel() else None
    y = x if x.is_floating_point() or mode == "nearest" else x.float()
    for axis, extent in _extents(
        x, factors, targets, along, policy=keep_aspect_ratio_policy, roi=window
    ):
        y = resample(y, axis, extent, how)
    return _back(y, x.dtype)


def _back(y: Tensor, dtype: torch.dtype) -> Tensor:
    if y.dtype == dtype:
        return y
    info = torch.iinfo(dtype)
    return y.clamp(info.min, info.max).to(dtype)


def _extents(
    x: Tensor,
    scales: list[float] | None,
    sizes: list[int] | None,
    axes: list[int],
    *,
    policy: str = "stretch",
    roi: list[float] | None = None,
) -> list[tuple[int, Extent]]:
    """Return every axis that changes, with what becomes of it.

    Source:
        ONNX Resize-19, keep_aspect_ratio_policy: one factor for all axes, sizes round half up.
    """
    old = [x.shape[axis] for axis in axes]
    if scales is None:
        want = sizes or old
        scales = [new / size for new, size in zip(want, old, strict=True)]
        if policy != "stretch":
            scales = [min(scales) if policy == "not_larger" else max(scales)] * len(axes)
            want = [int(scale * size + 0.5) for scale, size in zip(scales, old, strict=True)]
    else:
        want = [math.floor(scale * size) for scale, size in zip(scales, old, strict=True)]
    roi = roi or [0.0] * len(axes) + [1.0] * len(axes)
    found = [
        (axis, Extent(old=old[i], new=want[i], scale=scales[i], roi=(roi[i], roi[len(axes) + i])))
        for i, axis in enumerate(axes)
    ]
    return [
        (axis, extent)
        for axis, extent in found
        if (extent.new, extent.scale, extent.roi) != (extent.old, 1.0, (0.0, 1.0))
    ]


KERNELS = (upsample_attribute, upsample, resize_by_corner, resize)
