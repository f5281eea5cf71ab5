# SPDX-License-Identifier: Apache-2.0
"""What passes learn and hand on: the typed facts, one line each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import onnx
from numpy.typing import NDArray

from qhyvit_onnx.graph import value
from qhyvit_onnx.grid import Grid, WeightGrid
from qhyvit_onnx.interface import Interface
from qhyvit_onnx.kernels.evidence import Evidence
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.layout.chains import Layout
from qhyvit_onnx.metrics import Closeness
from qhyvit_onnx.replay import Replay
from qhyvit_onnx.simulated import ColumnGrid, Simulated
from qhyvit_onnx.state import Fact
from qhyvit_onnx.units import Unit


class Side(StrEnum):
    """Which world a node works in: what mixes the positions of a feature map there."""

    LOCAL = "local"
    """Neighbours are mixed: windows that overlap, of convolution or pooling, and resize."""
    GLOBAL = "global"
    """Every position meets every other: products of two activations."""


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of the network that works in one world at one spatial size.

    Regions come in the order in which data reaches them; every node is in exactly one.
    """

    side: Side
    size: str
    """Spatial size of the map it works on, as ``32x32``; what is free as ``height/8``, up to
    rounding, ``?`` for a dim without a name."""
    nodes: tuple[str, ...]
    """Names, in topological order."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """Every crossing between a local and a global region in one direction at one spatial size.

    An attention between tokens and features that run side by side is a bridge of its own.
    """

    direction: str
    """``in``: from local to global; ``out``: back."""
    size: str
    """Of the map that attention writes or looks at, that the first layer after a way out reads."""
    nodes: tuple[str, ...]
    """Last linear layers before, everything between, first linear layers after; in topological
    order. A product of activations stands in where no layer is."""
    inputs: tuple[str, ...]
    """Tensors that enter it: read by its first linear layers."""
    outputs: tuple[str, ...]
    """Tensors that leave it: written by its last linear layers."""
    why: str


@dataclass(frozen=True, slots=True)
class Fold:
    """What range folding did to one class: tensors whose channels are rewritten together."""

    tensors: tuple[str, ...]
    cure: str
    """``off``, ``scale``, ``shift`` or ``both``."""
    before: float
    after: float
    """Predicted error, summed over what reads the class, each relative to its signal."""
    shifted: tuple[str, ...]
    """Tensors whose range excluded zero before, and includes it now."""


@dataclass(frozen=True, slots=True)
class Grids:
    """Where every tensor and weight would be rounded to, if its layer runs int8."""

    activations: Mapping[str, Grid]
    weights: Mapping[str, WeightGrid]
    """By node name."""
    codes: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    """Learned rounding, by node name, in the shape of the weight; the others round to nearest."""
    biases: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Corrected biases, by node name, in the shape of the bias; the others stay as they are."""
    simulated: Mapping[str, Simulated] = field(default_factory=dict)
    """Grids that no kernel takes, by tensor, in place of the one in ``activations``."""
    columns: Mapping[str, ColumnGrid] = field(default_factory=dict)
    """The same for weights, by node name."""

    def codes_of(self, unit: Unit) -> NDArray[np.int8]:
        """Return the int8 codes of the weight of a layer."""
        if unit.name in self.codes:
            return self.codes[unit.name]
        return self.weights[unit.name].codes(np.asarray(value(unit.weight)))

    def weight_of(self, unit: Unit) -> NDArray[np.float32]:
        """Return the weight of a layer as its integer kernel sees it, in floats."""
        if unit.name in self.columns:
            return self.columns[unit.name].fake(np.asarray(value(unit.weight), np.float32))
        codes = self.codes_of(unit)
        steps = self.weights[unit.name].spread(codes.ndim)
        rounded: NDArray[np.float32] = (codes * steps).astype(np.float32)
        return rounded

    def bias_of(self, unit: Unit) -> NDArray[np.float32]:
        """Return the bias of a layer that has one, in floats."""
        return self.biases.get(unit.name, np.asarray(value(unit.bias)))


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
class Prediction:
    """What one run costs by the target's table."""

    unit: str
    """``ns`` or ``instructions``."""
    in_float: float
    full: float
    """With everything on integer kernels that has one."""
    placed: float


@dataclass(frozen=True, slots=True)
class Drop:
    """What the emitted model loses against float on the evaluation data."""

    points: float
    """Of top-1 with labels, else of decisions that are not float's; of the worst output."""
    labelled: bool

    @property
    def measure(self) -> str:
        """What is lost, in words."""
        return "points of top-1" if self.labelled else "% of decisions"

    def __str__(self) -> str:
        """Return it as a reader wants it."""
        return f"{self.points:.2f} {self.measure} lost"


@dataclass(frozen=True, slots=True)
class Paired:
    """The float and the emitted model timed in turn."""

    float_ms: float
    int8_ms: float
    """Milliseconds of one run, in the median."""
    slower: bool
    """Whether the emitted model took longer in nearly all rounds, so that it was no chance."""


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
    times: Mapping[int, Paired] = field(default_factory=dict)
    """By threads: process CPU time with one, elapsed time with two. Empty if not timed."""
    replay: Replay | None = None
    """Every integer node against its reference kernel; None when it was not asked for."""

    @property
    def slower(self) -> bool:
        """Tell whether the emitted model was slower than float however it was timed."""
        return bool(self.times) and all(paired.slower for paired in self.times.values())


LAYOUT: Fact[Layout] = Fact("layout")
REGIONS: Fact[tuple[Region, ...]] = Fact("regions")
BRIDGES: Fact[tuple[Bridge, ...]] = Fact("bridges")
STATS: Fact[Mapping[str, TensorStats]] = Fact("stats")
FOLDS: Fact[tuple[Fold, ...]] = Fact("folds")
RANGES: Fact[Mapping[str, TensorStats]] = Fact("ranges")
"""Statistics after range folding: what grids are made from."""
FLOAT: Fact[onnx.ModelProto] = Fact("float")
"""The float model that is quantized: every fold done, nothing rounded."""
EVIDENCE: Fact[Evidence] = Fact("evidence")
SEARCHED: Fact[Grids] = Fact("searched")
"""What the search of scales found."""
GRIDS: Fact[Grids] = Fact("grids")
"""What is emitted: the searched grids, or what was learned from there."""
SENSITIVITY: Fact[Mapping[str, float]] = Fact("sensitivity")
"""Unit name to squared output error over squared output when that unit alone is quantized."""
UNITS: Fact[tuple[Unit, ...]] = Fact("units")
INTERFACE: Fact[Interface] = Fact("interface")
"""What goes in and out of the emitted model."""
PLACEMENT: Fact[Placement] = Fact("placement")
PREDICTION: Fact[Prediction] = Fact("prediction")
DROP: Fact[Drop] = Fact("drop")
EMITTED: Fact[onnx.ModelProto] = Fact("emitted")
VERIFICATION: Fact[Verification] = Fact("verification")
