# SPDX-License-Identifier: Apache-2.0
"""Where evidence is taken: names of tensors, and how the layers between them read."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How a convolution slides over its input: the attributes of ONNX Conv-11.

    Shapes:
        kernel, strides, dilations: one number a spatial axis; pads two: beginnings, then ends.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = "NOTSET"
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Stack:
    """How a product with a constant reads: row by row, once for every matrix of a stack.

    Shapes:
        dims: what the weight has before its last two dims; () for a single matrix.
    """

    dims: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerProbe:
    """A layer with weights."""

    reads: str
    writes: str
    """After the bias, before a fused Relu or Clip: where its own error appears."""
    geometry: Window | Stack


@dataclass(frozen=True, slots=True)
class ProductProbe:
    """A product of two activations."""

    left: str
    right: str
    writes: str


@dataclass(frozen=True, slots=True)
class Probes:
    """Everything evidence is wanted of."""

    tensors: Mapping[str, int] = field(default_factory=dict)
    """Tensor name to channel axis."""
    layers: Mapping[str, LayerProbe] = field(default_factory=dict)
    """By unit."""
    products: Mapping[str, ProductProbe] = field(default_factory=dict)
    """By unit."""
    gains: tuple[str, ...] = ()
    """Tensors whose mean squared gradient is wanted."""
