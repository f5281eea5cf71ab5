# SPDX-License-Identifier: Apache-2.0
"""Ops that pick or write elements by index: slices, padding, gather and scatter."""

import torch
from torch import Tensor

from qhyvit_onnx.kernels.ops.table import kernel
from qhyvit_onnx.kernels.ops.windows import Ints, pad

_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""torch's names of ONNX's reductions."""


def _cut(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    """Slice one axis; bounds are clamped and negative steps walk backwards, as Python's do."""
    picked = range(*slice(start, end, step).indices(x.shape[axis]))
    if step < 0:
        return x.index_select(axis, torch.tensor(picked, dtype=torch.int64, device=x.device))
    part = x.narrow(axis, picked.start if picked else 0, 0)
    if picked:
        part = x.narrow(axis, picked.start, picked[-1] - picked.start + 1)
    return (
        part if step == 1 else part[(slice(None),) * (axis % x.ndim) + (slice(None, None, step),)]
    )


@kernel("Slice", since=1)
def slice_attributes(x: Tensor, *, starts: Ints, ends: Ints, axes: Ints | None = None) -> Tensor:
    """Slice some axes."""
    along = range(len(starts)) if axes is None else axes
    for axis, start, end in zip(along, starts, ends, strict=True):
        x = _cut(x, axis, start, end, 1)
    return x


@kernel("Slice", since=10, host=(1, 2, 3, 4))
def slice_axes(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Slice some axes, by any step."""
    firsts, lasts = starts.tolist(), ends.tolist()
    along = range(len(firsts)) if axes is None else axes.tolist()
    strides = [1] * len(firsts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(along, firsts, lasts, strides, strict=True):
        x = _cut(x, axis, start, end, step)
    return x


def _beyond(size: int, before: int, after: int, mode: str) -> list[int]:
    """Return which element of an axis each place of the padded axis shows."""
    places = range(-before, size + after)
    if mode == "edge":
        return [min(max(i, 0), size - 1) for i in places]
    if mode == "wrap":
        return [i % size for i in places]
    period = max(2 * size - 2, 1)  # reflect: 0 1 2 3 2 1 | 0 1 ...
    return [min(i % period, period - i % period) if size > 1 else 0 for i in places]


@kernel("Pad", since=2)
def pad_attributes(x: Tensor, *, pads: Ints, mode: str = "constant", value: float = 0.0) -> Tensor:
    """Add elements before and after every axis."""
    return _padded(x, list(pads), mode, value)


@kernel("Pad", since=11, host=(1, 2, 3))
def pad_axes(
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """Add elements before and after some axes: a constant, the edge, a mirror image, or a copy."""
    along = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes.tolist()]
    given = pads.tolist()
    full = [0] * (2 * x.ndim)
    for index, axis in enumerate(along):
        full[axis], full[x.ndim + axis] = given[index], given[len(along) + index]
    return _padded(x, full, mode, 0 if value is None else value.item())


def _padded(x: Tensor, pads: list[int], mode: str, value: float) -> Tensor:
    if mode == "constant":
        return pad(x, pads, value)
    for axis in range(x.ndim):
        before, after = pads[axis], pads[x.ndim + axis]
        if before or after:
            index = _beyond(x.shape[axis], before, after, mode)
            x = x.index_select(axis, torch.tensor(index, device=x.device))
    return x


def _positive(indices: Tensor, size: int) -> Tensor:
    """Return int64 indices that count from the start."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


@kernel("Gather", since=1, host=(1,))
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Pick slices along one axis; the axes of ``indices`` take its place."""
    if indices.ndim == 0:
        return x.select(axis, int(indices))
    picked = x.index_select(axis, _positive(indices.reshape(-1).to(x.device), x.shape[axis]))
    at = axis % x.ndim
    return picked.reshape(*x.shape[:at], *indices.shape, *x.shape[at + 1 :])


@kernel("GatherElements", since=11)
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Pick one element for each index along one axis."""
    return torch.gather(x, axis, _positive(indices, x.shape[axis]))


@kernel("GatherND", since=11)
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Pick slices by index tuples, the last axis of ``indices``, within each batch."""
    batch, width = x.shape[:batch_dims], indices.shape[-1]
    flat = x.reshape(-1, *x.shape[batch_dims:])  # (B, ...)
    tuples = indices.reshape(flat.shape[0], -1, width)  # (B, P, width)
    sample = torch.arange(flat.shape[0], device=x.device).unsqueeze(1)
    picked = flat[(sample, *tuples.long().unbind(-1))]  # (B, P, rest)
    return picked.reshape(*batch, *indices.shape[batch_dims:-1], *x.shape[batch_dims + width :])


def _scattered(x: Tensor, axis: int, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _SCATTER[reduction], include_self=True)


@kernel("ScatterElements", since=11)
def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """Write one element for each index along one axis, or combine it with what is there."""
    return _scattered(x, axis, _positive(indices, x.shape[axis]), updates, reduction)


@kernel("ScatterND", since=11)
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """Write slices at index tuples, the last axis of ``indices``, or combine them."""
    width = indices.shape[-1]
    rest = x.shape[width:]
    row = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for size, index in zip(x.shape[:width], indices.unbind(-1), strict=True):
        row = row * size + _positive(index, size)
    flat = x.reshape(-1, rest.numel())  # (rows, R)
    index = row.reshape(-1, 1).expand(-1, flat.shape[1])  # (P, R)
    written = _scattered(flat, 0, index, updates.reshape(index.shape), reduction)
    return written.reshape(x.shape)


KERNELS = (
    slice_attributes,
    slice_axes,
    pad_attributes,
    pad_axes,
    gather,
    gather_elements,
    gather_nd,
    scatter_elements,
    scatter_nd,
)
