# SPDX-License-Identifier: Apache-2.0
"""Rounding to a grid and back, in float, with gradients that training can follow."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | int,
    low: int,
    high: int,
    *,
    axis: int | None = None,
) -> Tensor:
    """Return s (clip(rint(x / s) + z, low, high) - z), rint half to even.

    Shapes:
        scale and zero_point () or, with ``axis``, (C,): one number for each place of that axis.

    Units:
        scale in units of x a step, above zero; zero_point, low and high in steps.

    Gradients:
        to x: 1 where x / s lies in [low - z, high - z], 0 outside (straight through);
        to s: rint(x / s) - x / s inside, low - z below, high - z above, summed over what the
        scale serves. Zero points are constants.

    Source:
        learned step size quantization, arXiv 1902.08153, eq. 1 to 3 and 5, with
        Q_N = z - low and Q_P = high - z. Its gradient scale (section 2.2) is left to the optimiser.
    """
    shape = _column(x, axis)
    zero = torch.as_tensor(zero_point, dtype=x.dtype, device=x.device)
    step, zero = scale.reshape(shape), zero.reshape(shape if zero.ndim else ())
    found: Tensor = _RoundToGrid.apply(x, step, low - zero, high - zero)  # type: ignore[no-untyped-call]
    return found


def round_through(x: Tensor) -> Tensor:
    """Return rint(x), half to even; its gradient is that of x (straight through)."""
    rounded: Tensor = x + (torch.round(x) - x).detach()
    return rounded


def _column(x: Tensor, axis: int | None) -> tuple[int, ...]:
    """Return the shape in which numbers along ``axis`` broadcast to x."""
    if axis is None:
        return ()
    return (-1, *[1] * (x.ndim - 1 - axis % x.ndim))


class _RoundToGrid(torch.autograd.Function):
    """y = s clip(rint(x / s), low, high); only x and s are kept for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, step, low, high)
        return torch.clamp(torch.round(x / step), low, high) * step

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN401
        x, step, low, high = ctx.saved_tensors
        ratio = x / step
        clipped = torch.clamp(ratio, low, high)
        to_x = to_step = None
        if ctx.needs_input_grad[0]:
            to_x = torch.where(ratio == clipped, grad, 0)
        if ctx.needs_input_grad[1]:
            # clipped is ratio inside and a bound, which rounds to itself, outside
            slope = torch.where(ratio == clipped, torch.round(ratio) - ratio, clipped)
            to_step = (grad * slope).sum_to_size(step.shape)
        return to_x, to_step, None, None
