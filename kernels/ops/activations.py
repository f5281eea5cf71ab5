# SPDX-License-Identifier: Apache-2.0
"""Activation functions, and the softmax family."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.kernels.ops.table import Kernel, kernel


@kernel("LeakyRelu", since=6)
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """Return x, times ``alpha`` below zero."""
    return F.leaky_relu(x, alpha)


@kernel("PRelu", since=7)
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Return x, times ``slope`` below zero; ``slope`` broadcasts to x."""
    return torch.where(x < 0, x * slope, x)


@kernel("Elu", since=6)
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Return x, or alpha (e^x - 1) below zero."""
    return F.elu(x, alpha)


@kernel("Celu", since=12)
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Return max(0, x) + min(0, alpha (e^(x / alpha) - 1))."""
    return F.celu(x, alpha)


@kernel("Selu", since=6)
def selu(
    x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805
) -> Tensor:
    """Return gamma x, or gamma alpha (e^x - 1) below zero."""
    return gamma * F.elu(x, alpha)


@kernel("Gelu", since=20)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Return x times the normal distribution at x, exactly or by its tanh approximation."""
    return F.gelu(x, approximate=approximate)


@kernel("Swish", since=24)
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Return x sigmoid(alpha x)."""
    return x * torch.sigmoid(alpha * x)


@kernel("HardSigmoid", since=6)
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Return alpha x + beta, clipped to [0, 1]."""
    return torch.clamp(x * alpha + beta, 0, 1)


@kernel("ThresholdedRelu", since=10)
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Return x above ``alpha``, else zero."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


@kernel("Shrink", since=9)
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Return x moved towards zero by ``bias``, and zero within ``lambd`` of it."""
    low, high = torch.where(x < -lambd, x + bias, 0), torch.where(x > lambd, x - bias, 0)
    return (low + high).to(x.dtype)


@kernel("Softmax", since=1)
def softmax_of_rows(x: Tensor, *, axis: int = 1) -> Tensor:
    """Softmax over all axes from ``axis`` on, taken together."""
    return torch.softmax(x.flatten(axis), -1).reshape(x.shape)


@kernel("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Softmax along one axis."""
    return torch.softmax(x, axis)


@kernel("LogSoftmax", since=1)
def log_softmax_of_rows(x: Tensor, *, axis: int = 1) -> Tensor:
    """Logarithm of the softmax over all axes from ``axis`` on, taken together."""
    return torch.log_softmax(x.flatten(axis), -1).reshape(x.shape)


@kernel("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Logarithm of the softmax along one axis."""
    return torch.log_softmax(x, axis)


@kernel("Dropout", since=7)
def dropout_without_training(x: Tensor, *, ratio: float = 0.5, outputs: int) -> tuple[Tensor, ...]:
    """Return x, and a mask of what is kept: everything."""
    return (x, torch.ones_like(x, dtype=torch.bool))[:outputs]


@kernel("Dropout", since=12, host=(1, 2))
def dropout(
    x: Tensor,
    ratio: Tensor | None = None,
    training: Tensor | None = None,
    *,
    seed: int = 0,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Return x and a mask of what is kept: everything; ModelError where elements would be dropped.

    Random numbers would follow torch's generator, not the one that the model was made with.
    """
    if training is not None and bool(training) and (ratio is None or float(ratio) > 0):
        raise ModelError("Dropout in training mode is random", hint="export the model in eval mode")
    return (x, torch.ones_like(x, dtype=torch.bool))[:outputs]


KERNELS = (
    Kernel("HardSwish", 14, F.hardswish),
    Kernel("Mish", 18, F.mish),
    Kernel("Relu", 6, torch.relu),
    Kernel("Sigmoid", 6, torch.sigmoid),
    Kernel("Softplus", 1, F.softplus),
    Kernel("Softsign", 1, F.softsign),
    Kernel("Tanh", 6, torch.tanh),
    leaky_relu,
    prelu,
    elu,
    celu,
    selu,
    gelu,
    swish,
    hard_sigmoid,
    thresholded_relu,
    shrink,
    softmax_of_rows,
    softmax,
    log_softmax_of_rows,
    log_softmax,
    dropout_without_training,
    dropout,
)
