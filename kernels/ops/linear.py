# SPDX-License-Identifier: Apache-2.0
"""Products: matrices, convolutions, and anything an einsum can spell."""

import torch
from torch import Tensor

from qhyvit_onnx.kernels.ops.table import Kernel, kernel
from qhyvit_onnx.kernels.ops.windows import Ints, convolve, pad, spatial_pads


@kernel("Gemm", since=7)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """Return alpha A B + beta C.

    Shapes:
        A (M, K), B (K, N) once transposed as asked; C broadcasts to the result (M, N).
    """
    a, b = (a.t() if transA else a), (b.t() if transB else b)
    if c is None:
        return a @ b if alpha == 1 else alpha * (a @ b)
    if not a.is_floating_point():
        return (alpha * (a @ b) + beta * c).to(a.dtype)
    return torch.addmm(c, a, b, alpha=alpha, beta=beta)


@kernel("Einsum", since=12)
def einsum(*operands: Tensor, equation: str) -> Tensor:
    """Sum products as ``equation`` says."""
    return torch.einsum(equation, *operands)


@kernel("Conv", since=1)
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Convolve any number of spatial axes.

    Shapes:
        x (N, C_in, *size), weight (C_out, C_in / group, *kernel), bias (C_out,).
    """
    rank = x.ndim - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    width = weight.shape[2:]
    pads = spatial_pads(
        x.shape[2:], width, auto_pad=auto_pad, pads=pads, strides=strides, dilations=dilations
    )
    same: Ints = pads[:rank]
    if same != pads[rank:]:
        x, same = pad(x, pads), ()
    return convolve(x, weight, bias, strides=strides, dilations=dilations, pads=same, groups=group)


@kernel("ConvTranspose", since=1)
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Spread every element over a window: the gradient of a convolution.

    Everything is computed, then cut (or lengthened by zeros) to what ``pads`` leave over.

    Shapes:
        x (N, C_in, *size), weight (C_in, C_out / group, *kernel), bias (C_out,).
    """
    rank = x.ndim - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    extra = output_padding or [0] * rank
    y = convolve(x, weight, strides=strides, dilations=dilations, groups=group, transposed=True)
    if output_shape is None and auto_pad.startswith("SAME"):
        output_shape = [n * stride for n, stride in zip(x.shape[2:], strides, strict=True)]
    if output_shape is not None:
        full = [size + more for size, more in zip(y.shape[2:], extra, strict=True)]
        pads = _pads_to_reach(output_shape[-rank:], full, upper=auto_pad == "SAME_UPPER")
    cuts = list(pads) if pads is not None and auto_pad != "VALID" else [0] * (2 * rank)
    ends = [more - cut for more, cut in zip(extra, cuts[rank:], strict=True)]
    y = pad(y, [-cut for cut in cuts[:rank]] + ends)
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


def _pads_to_reach(shape: Ints, full: Ints, *, upper: bool) -> list[int]:
    """Return the pads that cut ``full`` to ``shape``; an odd one goes to the end, or the start.

    Source:
        ONNX ConvTranspose-11: total_padding = full - output_shape; SAME_UPPER puts the smaller
        half first, anything else the larger one.
    """
    totals = [have - want for have, want in zip(full, shape, strict=True)]
    begins = [total // 2 if upper else total - total // 2 for total in totals]
    return begins + [total - begin for total, begin in zip(totals, begins, strict=True)]


KERNELS = (Kernel("MatMul", 1, torch.matmul), gemm, einsum, conv, conv_transpose)
