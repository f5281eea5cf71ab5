# SPDX-License-Identifier: Apache-2.0
"""Shape arithmetic and element types: what makes tensors out of sizes, ranges and types."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhyvit_onnx.kernels.ops.dtypes import tensor_of, torch_dtype
from qhyvit_onnx.kernels.ops.table import kernel


@kernel("Shape", since=1)
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """Return the sizes of the axes from ``start`` to ``end``."""
    return torch.tensor(x.shape[slice(start, end)], dtype=torch.int64)


@kernel("Size", since=1)
def size(x: Tensor) -> Tensor:
    """Return the number of elements."""
    return torch.tensor(x.numel())


@kernel("ConstantOfShape", since=9, host=(0,))
def constant_of_shape(sizes: Tensor, *, value: NDArray[np.generic] | None = None) -> Tensor:
    """Fill a shape with one number, float zero by default."""
    one = torch.zeros(1) if value is None else tensor_of(value)
    return one.reshape(()).expand(sizes.tolist()).clone()


@kernel("Range", since=11, host=(0, 1, 2))
def arange(start: Tensor, limit: Tensor, delta: Tensor, *, stash_type: int = 1) -> Tensor:
    """Count from ``start`` by ``delta``, short of ``limit``."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@kernel("Cast", since=6)
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Change the element type; the two options are about 8-bit floats only."""
    return x.to(torch_dtype(to))


@kernel("CastLike", since=15)
def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Change the element type to that of ``like``."""
    return x.to(like.dtype)


@kernel("NonZero", since=9)
def non_zero(x: Tensor) -> Tensor:
    """Return the indices of the elements that are not zero. Shapes: (rank, count)."""
    return x.nonzero().t()


@kernel("OneHot", since=9, host=(1,))
def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    """Add an axis of size ``depth``: ``values[1]`` at each index, ``values[0]`` elsewhere.

    Indices from -depth to -1 count from the end; others out of range are nowhere.
    """
    count = int(depth)
    at = axis % (indices.ndim + 1)
    index = indices.long().unsqueeze(at)
    steps = torch.arange(count, device=indices.device).reshape(-1, *[1] * (indices.ndim - at))
    hit = (index == steps) | (index + count == steps)
    return torch.where(hit, values[1], values[0])


@kernel("EyeLike", since=9)
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Return ones on diagonal ``k`` and zeros elsewhere, in the shape of ``x``."""
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    columns = torch.arange(x.shape[1], device=x.device)
    return (rows + k == columns).to(x.dtype if dtype is None else torch_dtype(dtype))


KERNELS = (
    shape,
    size,
    constant_of_shape,
    arange,
    cast,
    cast_like,
    non_zero,
    one_hot,
    eye_like,
)
