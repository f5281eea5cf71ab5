# SPDX-License-Identifier: Apache-2.0
"""Rounding to a grid and back, in float, with gradients that training can follow."""

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qhyvit_onnx.kernels.dropping import mixed

Bounds: TypeAlias = tuple[Tensor | int, Tensor | int]
"""Lowest and highest number of steps from zero."""


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | int,
    low: int,
    high: int,
    *,
    axis: int | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """Return s (clip(rint(x / s) + z, low, high) - z), rint half to even; x where ``kept`` is true.

    Shapes:
        scale and zero_point () or, with ``axis``, (C,): one number for each place of that axis;
        kept as x.

    Units:
        scale in units of x a step, above zero; zero_point, low and high in steps.

    Gradients:
        to x: 1 where x / s lies in [low - z, high - z], 0 outside (straight through);
        to s: rint(x / s) - x / s inside, low - z below, high - z above, summed over what the
        scale serves. Zero points are constants. Where x is kept, 1 to x and 0 to s.

    Source:
        learned step size quantization, arXiv 1902.08153, eq. 1 to 3 and 5, with
        Q_N = z - low and Q_P = high - z. Its gradient scale (section 2.2) is left to the optimiser.
    """
    shape = _column(x, axis)
    zero: Tensor | int = zero_point
    if isinstance(zero, Tensor):
        zero = zero.to(x).reshape(shape if zero.ndim else ())
    bounds = low - zero, high - zero
    step = scale.reshape(shape)
    if not torch.is_grad_enabled():  # what autograd keeps account of takes a third of the time
        return _rounded(x, step, bounds, kept)
    found: Tensor = _RoundToGrid.apply(x, step, bounds, kept)  # type: ignore[no-untyped-call]
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


def _rounded(x: Tensor, step: Tensor, bounds: Bounds, kept: Tensor | None) -> Tensor:
    rounded = torch.clamp((x / step).round_(), *bounds).mul_(step)  # type: ignore[arg-type]
    return rounded if kept is None else mixed(rounded, x, kept)


class _RoundToGrid(torch.autograd.Function):
    """y = s clip(rint(x / s), low, high); only x and s are kept for the way back.

    Masks multiply: ``torch.where`` takes several times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, bounds: Bounds, kept: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, step, kept)
        ctx.bounds = bounds
        return _rounded(x, step, bounds, kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN401
        x, step, kept = ctx.saved_tensors
        ratio = x / step
        clipped = torch.clamp(ratio, *ctx.bounds)
        inside = ratio == clipped
        to_x = to_step = None
        if ctx.needs_input_grad[1]:
            # outside, clipped is a bound, which rounds to itself; inside it is the ratio
            slope = torch.round(clipped).sub_(clipped.mul_(inside))
            if kept is not None:
                slope.mul_(~kept)
            to_step = slope.mul_(grad).sum_to_size(step.shape)
        if ctx.needs_input_grad[0]:
            to_x = grad * (inside if kept is None else inside.logical_or_(kept))
        return to_x, to_step, None, None
