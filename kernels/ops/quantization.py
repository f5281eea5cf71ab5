# SPDX-License-Identifier: Apache-2.0
"""QuantizeLinear and DequantizeLinear, with integer codes; no gradient passes the codes.

To train through rounding, leave these out of the graph and hook ``fake_quantize`` in instead.
"""

import torch
from torch import Tensor

from qhyvit_onnx.kernels.ops.dtypes import torch_dtype
from qhyvit_onnx.kernels.ops.table import kernel


def _spread(numbers: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Return scales or zero points shaped to meet ``x``.

    Shapes:
        numbers (): one for all; (C,): one for each place of ``axis``; else the shape of x with
        ``axis`` divided by ``block``.
    """
    if numbers.numel() == 1:
        return numbers.reshape(())
    if not block:
        return numbers.reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))
    return numbers.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])


@kernel("QuantizeLinear", since=10)
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """Round x / scale half to even, add the zero point, saturate to its type.

    Shapes:
        scale and zero point (), (C,) along ``axis``, or blocks along it.

    Source:
        ONNX QuantizeLinear-21.
    """
    dtype = torch_dtype(output_dtype) if output_dtype else torch.uint8
    wide = torch_dtype(precision) if precision else torch.float32
    codes = torch.round(x.to(wide) / _spread(scale, x, axis, block_size).to(wide))
    if zero_point is not None:
        dtype = zero_point.dtype
        codes = codes + _spread(zero_point, x, axis, block_size).to(wide)
    info = torch.iinfo(dtype)
    return codes.clamp(info.min, info.max).to(dtype)


@kernel("DequantizeLinear", since=10)
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """Return (x - zero point) * scale, in the type of the scale.

    Shapes:
        scale and zero point (), (C,) along ``axis``, or blocks along it.

    Source:
        ONNX DequantizeLinear-21.
    """
    codes = x.to(torch.int32)
    if zero_point is not None:
        codes = codes - _spread(zero_point, x, axis, block_size).to(torch.int32)
    dtype = torch_dtype(output_dtype) if output_dtype else scale.dtype
    values = codes.to(torch.float32) * _spread(scale, x, axis, block_size).to(torch.float32)
    return values.to(dtype)


KERNELS = (quantize_linear, dequantize_linear)
