# SPDX-License-Identifier: Apache-2.0
"""What passes learn and hand on: the typed facts, one line each."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from qhyvit_onnx.grid import Grid, WeightGrid
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.metrics import Closeness
from qhyvit_onnx.state import Fact
from qhyvit_onnx.units import Unit


@dataclass(frozen=True, slots=True)
class Bridge:
    """A crossing between a convolutional (local) and a transformer (global) region."""

    direction: str
    """``in``: from local to global; ``out``: back."""
    nodes: tuple[str, ...]
    """Last linear layer before, everything between, first linear layers after."""
    why: str


@dataclass(frozen=True, slots=True)
class Grids:
    """Where every tensor and weight would be rounded to, if its layer runs int8."""

    activations: Mapping[str, Grid]
    weights: Mapping[str, WeightGrid]
    """By node name."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Which fusion unit runs int8, and which tensors are carried as uint8 between them."""

    int8: tuple[str, ...]
    """Main node names of the units on integer kernels."""
    carried: Mapping[str, str]
    """Tensor name to the tensor whose grid it uses (itself, or the source of a data movement)."""
    reasons: Mapping[str, str]
    """Node name to why it stays float."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was proven about the emitted model."""

    kernels: Mapping[str, str]
    """Unit name to the integer kernel that runs it on this host."""
    views: tuple[str, ...]
    """Whose fusion decisions were audited."""
    closeness: Mapping[str, Closeness]
    """By output name: float model against emitted model, in onnxruntime."""
    held_back: bool
    """Whether the compared samples were kept out of calibration."""
    arithmetic: str
    float_ms: float
    int8_ms: float
    """Median process CPU time of one run, one thread, measured in turn; milliseconds."""


BRIDGES: Fact[tuple[Bridge, ...]] = Fact("bridges")
STATS: Fact[Mapping[str, TensorStats]] = Fact("stats")
GRIDS: Fact[Grids] = Fact("grids")
SENSITIVITY: Fact[Mapping[str, float]] = Fact("sensitivity")
"""Unit name to squared output error over squared output when that unit alone is quantized."""
UNITS: Fact[tuple[Unit, ...]] = Fact("units")
PLACEMENT: Fact[Placement] = Fact("placement")
EMITTED: Fact[onnx.ModelProto] = Fact("emitted")
VERIFICATION: Fact[Verification] = Fact("verification")
