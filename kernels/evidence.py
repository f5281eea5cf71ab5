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
        values and gains (P, C): P places, C channels.

    Units:
        gains are squared gradients of the loss: an error e costs ``sum gains * e ** 2``.
    """

    values: Floats
    gains: Floats


@dataclass(frozen=True, slots=True)
class LayerEvidence:
    """What one layer with weights reads and what errors of its output cost.

    Shapes:
        gram (groups, K, K): mean over places of ``g2 x x^T``, g2 the mean of the gains over the
        output channels of the group, K in the order of the flattened weight of one channel;
        rows (P, groups, K): patches drawn from the input; gains (P, C_out) at the same places.
    """

    gram: Floats
    rows: Floats
    gains: Floats


@dataclass(frozen=True, slots=True)
class ProductEvidence:
    """Matrices drawn from both operands of a product of activations.

    Shapes:
        left (S, M, K), right (S, K, N), gains (S, M, N); heads (S,) index of the head of each.
    """

    left: Floats
    right: Floats
    gains: Floats
    heads: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything ``weigh`` gathers; empty where there are no gradients."""

    tensors: Mapping[str, TensorEvidence] = field(default_factory=dict)
    """By name of the tensor that a grid belongs to."""
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
