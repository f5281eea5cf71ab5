# SPDX-License-Identifier: Apache-2.0
"""What the search of grids knows of a network: what its layers read, and what errors cost.

All arrays are samples or sums over the calibration data, of a size that does not grow with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TensorEvidence:
    """Places drawn from one activation tensor, and what an error there costs.

    Shapes:
        values and gains (P, C): P places, evenly spread over the samples, C channels. C is 1 where
        the channel axis is so long, beyond 4,096, that it must count positions.

    Units:
        gains are squared gradients of the loss of one sample, in squared units of loss over squared
        units of the tensor: an error e costs ``sum gains * e ** 2``, up to a factor of the net.

    Source:
        the diagonal of the Fisher matrix, or of J^T J: ``losses.slope``.
    """

    values: Floats
    gains: Floats


@dataclass(frozen=True, slots=True)
class LayerEvidence:
    """What one layer with weights reads and what errors of its output cost.

    Shapes:
        gram (groups, K, K): mean over places of ``g2 x x^T``, g2 the mean of the gains over the
        output channels of the group. K is in the order of the weight of one output channel:
        ``weight.reshape(C_out, -1)`` for Conv, (C_in / groups, kernel); the rows of the matrix for
        MatMul and Gemm. A stack of matrices (..., K, N) has a group for each.
        rows (P, groups, K): patches drawn from the input, zero where padding is; gains (P, C_out)
        at the same places, group by group, at the output after the bias, before a fused Relu.

    Units:
        gains as in TensorEvidence. An error d (groups, C, K) of the weights costs
        ``sum_c d^T gram d`` per place, c over the channels of the group.
    """

    gram: Floats
    rows: Floats
    gains: Floats


@dataclass(frozen=True, slots=True)
class ProductEvidence:
    """Matrices drawn from both operands of a product of activations.

    Rows, columns and terms of large matrices are drawn too, the same for both operands and the
    gains; with terms left out, ``left @ right`` is a part of the sum. All come from samples of one
    size, that of the first.

    Shapes:
        left (S, M, K), right (S, K, N), gains (S, M, N); heads (S,) index of the head of each:
        along the last axis before the matrices.

    Units:
        gains as in TensorEvidence, at the elements of the product.
    """

    left: Floats
    right: Floats
    gains: Floats
    heads: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything ``weigh`` gathers; empty where there are no gradients.

    What no gradient reaches is missing, so that nobody takes its errors for free.
    """

    tensors: Mapping[str, TensorEvidence] = field(default_factory=dict)
    """By name of the computed tensor whose elements a grid rounds: ``units.source_of``."""
    layers: Mapping[str, LayerEvidence] = field(default_factory=dict)
    """By unit."""
    products: Mapping[str, ProductEvidence] = field(default_factory=dict)
    """By unit."""
    gains: Mapping[str, float] = field(default_factory=dict)
    """Mean squared gradient at the output of every unit and at every output of a bridge, by tensor
    name."""
    losses: Mapping[str, str] = field(default_factory=dict)
    """By model output: how its loss was drawn."""
    opaque: tuple[str, ...] = ()
    """Ops without a kernel: no gradient passes them."""

    def __bool__(self) -> bool:
        """Tell whether anything was gathered."""
        return bool(self.tensors)
