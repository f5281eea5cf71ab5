# SPDX-License-Identifier: Apache-2.0
"""Reductions over axes, given as an attribute by old models and as an input by new ones."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.linalg import vector_norm

from qhyvit_onnx.kernels.ops.table import Kernel, kernel

Axes: TypeAlias = list[int]
Reduction: TypeAlias = Callable[[Tensor, Axes], Tensor]
"""(x, axes) -> x reduced over ``axes``, which stay with size 1."""


def _floats(x: Tensor) -> Tensor:
    """Return x in a type that holds fractions."""
    return x if x.is_floating_point() else x.double()


def _product(x: Tensor, axes: Axes) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x


def _largest(x: Tensor, axes: Axes) -> Tensor:
    return x.amax(axes, keepdim=True) if x.numel() else _nothing(x, axes, -math.inf)


def _smallest(x: Tensor, axes: Axes) -> Tensor:
    return x.amin(axes, keepdim=True) if x.numel() else _nothing(x, axes, math.inf)


def _nothing(x: Tensor, axes: Axes, infinity: float) -> Tensor:
    """Return the extreme of no elements: the worst number of the type."""
    empty = x.sum(axes, keepdim=True, dtype=x.dtype)
    if x.dtype == torch.bool:
        return torch.full_like(empty, infinity > 0)
    if x.is_floating_point():
        return torch.full_like(empty, infinity)
    info = torch.iinfo(x.dtype)
    return torch.full_like(empty, info.max if infinity > 0 else info.min)


def _reduce(
    reduction: Reduction, x: Tensor, axes: Sequence[int] | None, keepdims: int, noop: int
) -> Tensor:
    if not axes and noop:  # over nothing: each element alone
        return reduction(x.unsqueeze(0), [0]).squeeze(0).to(x.dtype)
    over = list(axes) if axes else list(range(x.ndim))
    if not over:  # a number has no axes; torch would take an empty list for all of them
        return reduction(x.reshape(1), [0]).reshape(()).to(x.dtype)
    found = reduction(x, over).to(x.dtype)
    return found if keepdims else found.squeeze(over)


def _kernels(op: str, reduction: Reduction, *, input_since: int = 18) -> tuple[Kernel, Kernel]:
    """Return the kernels of one op: axes as an attribute, then as an input."""

    def by_attribute(x: Tensor, *, axes: Sequence[int] | None = None, keepdims: int = 1) -> Tensor:
        return _reduce(reduction, x, axes, keepdims, 0)

    def by_input(
        x: Tensor,
        axes: Tensor | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        given = None if axes is None else axes.tolist()
        return _reduce(reduction, x, given, keepdims, noop_with_empty_axes)

    old, new = kernel(op, since=1), kernel(op, since=input_since, host=(1,))
    return old(by_attribute), new(by_input)


def _arg(
    pick: Callable[[Tensor, int, bool], Tensor],
    x: Tensor,
    *,
    axis: int = 0,
    keepdims: int = 1,
    select_last_index: int = 0,
) -> Tensor:
    """Return the index of the extreme element; of equals the first, or the last."""
    if x.dtype == torch.bool:
        x = x.byte()
    if not select_last_index:
        return pick(x, axis, bool(keepdims))
    return x.shape[axis] - 1 - pick(x.flip(axis), axis, bool(keepdims))


@kernel("CumSum", since=11, host=(1,))
def cumulative_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Sum up to each element along one axis, without itself if ``exclusive``."""
    along = int(axis)
    turned = x.flip(along) if reverse else x
    sums = turned.cumsum(along, dtype=x.dtype)
    if exclusive:
        sums = sums - turned
    return sums.flip(along) if reverse else sums


def _top(x: Tensor, count: int, axis: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """Return the extreme values in order and their indices; of equals the first comes first."""
    values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


@kernel("TopK", since=1)
def top_k_of_attribute(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest elements along one axis, and their indices."""
    return _top(x, k, axis, largest=True)


@kernel("TopK", since=10, host=(1,))
def top_k(
    x: Tensor,
    k: Tensor,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,  # noqa: A002
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest or smallest elements along one axis, and their indices."""
    return _top(x, int(k), axis, largest=bool(largest))


KERNELS = (
    *_kernels("ReduceL1", lambda x, axes: x.abs().sum(axes, keepdim=True)),
    *_kernels("ReduceL2", lambda x, axes: vector_norm(_floats(x), 2, axes, keepdim=True)),
    *_kernels("ReduceLogSum", lambda x, axes: x.sum(axes, keepdim=True).log()),
    *_kernels("ReduceLogSumExp", lambda x, axes: _floats(x).logsumexp(axes, keepdim=True)),
    *_kernels("ReduceMax", _largest),
    *_kernels("ReduceMean", lambda x, axes: _floats(x).mean(axes, keepdim=True)),
    *_kernels("ReduceMin", _smallest),
    *_kernels("ReduceProd", _product),
    *_kernels("ReduceSum", lambda x, axes: x.sum(axes, keepdim=True), input_since=13),
    *_kernels("ReduceSumSquare", lambda x, axes: x.square().sum(axes, keepdim=True)),
    kernel("ArgMax", since=1)(partial(_arg, torch.argmax)),
    kernel("ArgMin", since=1)(partial(_arg, torch.argmin)),
    cumulative_sum,
    top_k_of_attribute,
    top_k,
)
