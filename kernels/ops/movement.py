# SPDX-License-Identifier: Apache-2.0
"""Ops that give elements another place or repeat them, without indices of their own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qhyvit_onnx.kernels.ops.table import Result, kernel

Ints = Sequence[int]


@kernel("Identity", since=1)
def identity(x: Tensor) -> Tensor:
    """Return x."""
    return x


@kernel("Reshape", since=5, host=(1,))
def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """Give another shape: -1 is what is left over, 0 the size of the same axis of x."""
    sizes = shape.tolist()
    if not allowzero:
        sizes = [n or x.shape[axis] for axis, n in enumerate(sizes)]
    return x.reshape(sizes)


@kernel("Flatten", since=1)
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Make two axes: all before ``axis``, and all from it on."""
    at = axis % x.ndim if axis < 0 else axis
    rows = torch.Size(x.shape[:at]).numel()
    return x.reshape(rows, torch.Size(x.shape[at:]).numel())


@kernel("Transpose", since=1)
def transpose(x: Tensor, *, perm: Ints | None = None) -> Tensor:
    """Permute the axes; reverse them by default."""
    return x.permute(list(perm) if perm is not None else list(reversed(range(x.ndim))))


def _squeezed(x: Tensor, axes: Ints | None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@kernel("Squeeze", since=1)
def squeeze_attribute(x: Tensor, *, axes: Ints | None = None) -> Tensor:
    """Drop axes of size 1: those named, or all."""
    return _squeezed(x, axes)


@kernel("Squeeze", since=13, host=(1,))
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drop axes of size 1: those named, or all."""
    return _squeezed(x, None if axes is None else axes.tolist())


def _unsqueezed(x: Tensor, axes: Ints) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@kernel("Unsqueeze", since=1)
def unsqueeze_attribute(x: Tensor, *, axes: Ints) -> Tensor:
    """Insert axes of size 1; ``axes`` are those of the result."""
    return _unsqueezed(x, axes)


@kernel("Unsqueeze", since=13, host=(1,))
def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    """Insert axes of size 1; ``axes`` are those of the result."""
    return _unsqueezed(x, axes.reshape(-1).tolist())


@kernel("Concat", since=4)
def concat(*parts: Tensor, axis: int) -> Tensor:
    """Join tensors along one axis."""
    return torch.cat(parts, axis)


def _split(x: Tensor, sizes: Ints | None, axis: int, count: int) -> Result:
    """Cut into ``sizes``, or into ``count`` equal parts of which the last may be smaller."""
    if sizes is None:
        length = x.shape[axis]
        each = -(-length // count)
        sizes = [max(min(each, length - each * i), 0) for i in range(count)]
    return torch.split(x, list(sizes), axis)


@kernel("Split", since=2)
def split_attribute(x: Tensor, *, axis: int = 0, split: Ints | None = None, outputs: int) -> Result:
    """Cut along one axis, into the sizes given or into equal parts."""
    return _split(x, split, axis, outputs)


@kernel("Split", since=13, host=(1,))
def split(
    x: Tensor,
    sizes: Tensor | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    outputs: int,
) -> Result:
    """Cut along one axis, into the sizes given or into equal parts."""
    return _split(x, None if sizes is None else sizes.tolist(), axis, num_outputs or outputs)


@kernel("Expand", since=8, host=(1,))
def expand(x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast x and ``shape`` to each other."""
    sizes = shape.tolist()
    rank = max(x.ndim, len(sizes))
    have, want = ([1] * (rank - len(s)) + list(s) for s in (x.shape, sizes))
    return x.expand([new if old == 1 else old for old, new in zip(have, want, strict=True)])


@kernel("Tile", since=6, host=(1,))
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """Repeat along every axis."""
    return x.repeat(repeats.tolist())


@kernel("DepthToSpace", since=1)
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Turn channels into blocks of pixels. Shapes: (N, C, H, W) to (N, C / b^2, H b, W b)."""
    n, c, h, w = x.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "DCR":  # (N, b, b, C', H, W) -> (N, C', H, b, W, b)
        blocks = x.reshape(n, b, b, depth, h, w).permute(0, 3, 4, 1, 5, 2)
    else:  # (N, C', b, b, H, W) -> (N, C', H, b, W, b)
        blocks = x.reshape(n, depth, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, depth, h * b, w * b)


@kernel("SpaceToDepth", since=1)
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Turn blocks of pixels into channels. Shapes: (N, C, H, W) to (N, C b^2, H / b, W / b)."""
    n, c, h, w = x.shape
    b = blocksize
    blocks = x.reshape(n, c, h // b, b, w // b, b)  # (N, C, H', b, W', b)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.permute(order).reshape(n, c * b * b, h // b, w // b)


@kernel("Trilu", since=14, host=(1,))
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """Keep the triangle above (or below) diagonal ``k`` of the last two axes."""
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if upper else x.tril(diagonal)


KERNELS = (
    identity,
    reshape,
    flatten,
    transpose,
    squeeze_attribute,
    squeeze,
    unsqueeze_attribute,
    unsqueeze,
    concat,
    split_attribute,
    split,
    expand,
    tile,
    depth_to_space,
    space_to_depth,
    trilu,
)
