# SPDX-License-Identifier: Apache-2.0
"""Resampling of one axis: where each new element looks in the old ones, and with what weights.

Every interpolation of ONNX is separable, so an image is resampled axis by axis.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qhyvit_onnx.errors import ModelError

_SUPPORT = {"linear": 1, "cubic": 2}
"""Reach of a filter to each side, in old elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The attributes of ONNX Resize that say how to look."""

    mode: str = "nearest"
    nearest_mode: str = "round_prefer_floor"
    coordinates: str = "half_pixel"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """One axis before and after."""

    old: int
    new: int
    scale: float
    """What the model asks for; new / old up to rounding."""
    roi: tuple[float, float] = (0.0, 1.0)
    """Part of the axis that is looked at (tf_crop_and_resize only)."""


def resample(x: Tensor, axis: int, extent: Extent, how: Sampling) -> Tensor:
    """Return ``x`` with ``axis`` resampled."""
    places = _places(extent, how.coordinates)
    if how.mode == "nearest":
        index = _nearest(places, how.nearest_mode).clamp(0, extent.old - 1)
        return _extrapolated(x.index_select(axis, index.to(x.device)), axis, places, extent, how)
    taps, weights = _taps(places, extent, how)
    taps = taps.clamp(0, extent.old - 1).to(x.device)
    column = (-1, *[1] * (x.ndim - 1 - axis))
    weights = weights.to(x.device, x.dtype)
    y = torch.zeros(())
    for tap, weight in zip(taps.unbind(1), weights.unbind(1), strict=True):
        y = y + x.index_select(axis, tap) * weight.reshape(column)
    return _extrapolated(y, axis, places, extent, how)


def _places(extent: Extent, coordinates: str) -> Tensor:
    """Return where each new element lies among the old ones. Shapes: (new,), float64.

    Source:
        ONNX Resize-19, coordinate_transformation_mode; with length = scale * old.
    """
    if coordinates not in _COORDINATES:
        raise ModelError(f"Resize has no coordinate_transformation_mode {coordinates!r}")
    length = extent.scale * extent.old
    return _COORDINATES[coordinates](torch.arange(extent.new, dtype=torch.float64), extent, length)


def _half_pixel(new: Tensor, extent: Extent, _length: float) -> Tensor:
    return (new + 0.5) / extent.scale - 0.5


def _half_pixel_symmetric(new: Tensor, extent: Extent, length: float) -> Tensor:
    shift = extent.old / 2 * (1 - extent.new / length)  # centre on centre, whatever was rounded
    return shift + (new + 0.5) / extent.scale - 0.5


def _pytorch_half_pixel(new: Tensor, extent: Extent, length: float) -> Tensor:
    return (new + 0.5) / extent.scale - 0.5 if length > 1 else new * 0


def _align_corners(new: Tensor, extent: Extent, length: float) -> Tensor:
    return new * (extent.old - 1) / (length - 1) if length != 1 else new * 0


def _crop_and_resize(new: Tensor, extent: Extent, length: float) -> Tensor:
    first, last = (part * (extent.old - 1) for part in extent.roi)
    if length == 1:
        return new * 0 + (first + last) / 2
    return new * (last - first) / (length - 1) + first


_COORDINATES: dict[str, Callable[[Tensor, Extent, float], Tensor]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": lambda new, extent, _length: new / extent.scale,
    "tf_half_pixel_for_nn": lambda new, extent, _length: (new + 0.5) / extent.scale,
    "tf_crop_and_resize": _crop_and_resize,
}


def _nearest(places: Tensor, mode: str) -> Tensor:
    if mode not in _ROUNDING:
        raise ModelError(f"Resize has no nearest_mode {mode!r}")
    return _ROUNDING[mode](places).long()


_ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda places: torch.ceil(places - 0.5),
    "round_prefer_ceil": lambda places: torch.floor(places + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _taps(places: Tensor, extent: Extent, how: Sampling) -> tuple[Tensor, Tensor]:
    """Return the old elements each new one is made of, and their weights, which sum to one.

    Shapes:
        places (new,); both results (new, taps).
    """
    if how.mode not in _SUPPORT:
        raise ModelError(f"Resize has no mode {how.mode!r}")
    shrink = min(extent.scale, 1.0) if how.antialias else 1.0
    reach = _SUPPORT[how.mode] / shrink
    first = torch.floor(places - reach).unsqueeze(1) + 1
    taps = first + torch.arange(int(2 * reach) + 1)  # those beyond the reach weigh nothing
    weights = _filter((taps - places.unsqueeze(1)).abs() * shrink, how)
    if how.exclude_outside:
        weights = torch.where((taps < 0) | (taps >= extent.old), 0.0, weights)
    total = weights.sum(1, keepdim=True)
    weights = weights / torch.where(total == 0, 1.0, total)
    used = weights.any(0)
    return taps[:, used].long(), weights[:, used]


def _filter(distance: Tensor, how: Sampling) -> Tensor:
    """Return the weight at a distance.

    Source:
        cubic: R. Keys, Cubic convolution interpolation, 1981, eq. 4, with a = ``cubic_a``.
    """
    if how.mode == "linear":
        return (1 - distance).clamp(min=0)
    a, d = how.cubic_a, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))


def _extrapolated(y: Tensor, axis: int, places: Tensor, extent: Extent, how: Sampling) -> Tensor:
    """Put the extrapolation value where tf_crop_and_resize looks outside."""
    if how.coordinates != "tf_crop_and_resize":
        return y
    outside = ((places < 0) | (places > extent.old - 1)).to(y.device)
    shape = (-1, *[1] * (y.ndim - 1 - axis))
    return torch.where(outside.reshape(shape), how.extrapolation, y).to(y.dtype)
