# SPDX-License-Identifier: Apache-2.0
"""What a fusion unit can be: every kind that onnxruntime has an integer kernel for."""

from enum import StrEnum


class Kind(StrEnum):
    """What a unit computes; each kind has a row in float and one in int8 in a target's table."""

    CONV = "conv"
    """Convolution that mixes channels and space."""
    POINTWISE = "pointwise conv"
    """1x1 convolution."""
    DEPTHWISE = "depthwise conv"
    """One filter per channel, and as many channels out as in."""
    GROUPED = "grouped conv"
    """Any other convolution in groups; one that widens depthwise is one too: no kernel is its own.
    """
    STEM = "stem conv"
    """Convolution of at most four input channels: too little work for integer kernels."""
    GEMM = "gemm"
    MATMUL = "matmul"
    """Product with a constant weight, and its bias."""
    PRODUCT = "product"
    """Product of two activations: attention's QK and AV."""
    SILU = "silu"
    """x * Sigmoid(x)."""
    GELU = "gelu"
    """x times the normal distribution function of x; on integers with SiLU's kernels."""
    SIGMOID = "sigmoid"
    """Sigmoid of anything but a SiLU: a gate."""
    LEAKY_RELU = "leaky relu"
    SOFTMAX = "softmax"
    ADD = "add"
    MUL = "mul"
    CONCAT = "concat"
    POOL = "average pool"


CONVOLUTIONS = frozenset({
    Kind.CONV, Kind.POINTWISE, Kind.DEPTHWISE, Kind.GROUPED, Kind.STEM,
})  # fmt: skip

LAYERS = CONVOLUTIONS | {Kind.GEMM, Kind.MATMUL}
"""Kinds with a constant weight."""
