# SPDX-License-Identifier: Apache-2.0
"""Normalisations: subtract a mean, divide by a deviation, scale and shift."""

import torch
from torch import Tensor

from qhyvit_onnx.kernels.ops.table import Result, kernel


@kernel("BatchNormalization", since=9)
def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Result:
    """Normalise each channel by the statistics given, or, in training, by those of the batch.

    Shapes:
        x (N, C, *); the others (C,). Training also returns the new running mean and variance.

    Source:
        ONNX BatchNormalization-15: y = (x - mean) / sqrt(var + eps) * scale + bias, and
        running = running * momentum + batch * (1 - momentum), with the variance of the population.
    """
    moments: Result = ()
    if training_mode:
        batch_var, batch_mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        moments = (
            mean * momentum + batch_mean * (1 - momentum),
            var * momentum + batch_var * (1 - momentum),
        )
        mean, var = batch_mean, batch_var
    y = torch.nn.functional.batch_norm(x, mean, var, scale, bias, eps=epsilon)
    return (y, *moments)


@kernel("InstanceNormalization", since=6)
def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Normalise each channel of each sample over its spatial axes.

    Shapes:
        x (N, C, *); scale and bias (C,).
    """
    return torch.group_norm(x, x.shape[1], scale, bias, epsilon)


@kernel("GroupNormalization", since=18)
def group_norm_by_group(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """Normalise groups of channels; scale and shift are those of a group.

    Shapes:
        x (N, C, *); scale and bias (G,).
    """
    each = x.shape[1] // num_groups
    scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return torch.group_norm(x, num_groups, scale, bias, epsilon)


@kernel("GroupNormalization", since=21)
def group_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """Normalise groups of channels; scale and shift are those of a channel.

    Shapes:
        x (N, C, *); scale and bias (C,).
    """
    return torch.group_norm(x, num_groups, scale, bias, epsilon)


@kernel("LayerNormalization", since=17)
def layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int,
) -> Result:
    """Normalise over the axes from ``axis`` on; also return the mean and 1 / deviation if asked.

    Shapes:
        scale and bias broadcast to x.

    Error:
        half floats are accumulated in float32, as ``stash_type`` 1 asks.
    """
    shape = x.shape[axis:]
    whole = scale.shape == shape and (bias is None or bias.shape == shape)
    y = torch.layer_norm(x, shape, scale if whole else None, bias if whole else None, epsilon)
    if not whole:
        y = y * scale if bias is None else y * scale + bias
    if outputs == 1:
        return y
    over = list(range(axis % x.ndim, x.ndim))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    var, mean = torch.var_mean(wide, over, correction=0, keepdim=True)
    return (y, mean, torch.rsqrt(var + epsilon))[:outputs]


@kernel("RMSNormalization", since=23)
def rms_norm(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Divide by the root mean square over the axes from ``axis`` on, and scale.

    Shapes:
        scale broadcasts to x.
    """
    over = list(range(axis % x.ndim, x.ndim))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    inverse = torch.rsqrt(wide.square().mean(over, keepdim=True) + epsilon)
    return (wide * inverse).to(x.dtype) * scale


@kernel("LpNormalization", since=1)
def lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divide by the p-norm along one axis; rows of zeros stay zeros."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, 1, norm)


KERNELS = (
    batch_norm,
    instance_norm,
    group_norm_by_group,
    group_norm,
    layer_norm,
    rms_norm,
    lp_norm,
)
