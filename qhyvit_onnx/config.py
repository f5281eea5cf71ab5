# SPDX-License-Identifier: Apache-2.0
"""Frozen, keyword-only settings, checked when they are made; defaults live only here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.precision import Precision
from qhyvit_onnx.recipes import find_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How scales are searched."""

    candidates: int = 100
    """Clip points tried on each side of an activation range."""

    lowest: float = 0.6
    """Smallest candidate, as a fraction of the observed range: what calibration saw once, a
    deployed model sees again."""

    def __post_init__(self) -> None:
        """Reject what no search could honour."""
        if self.candidates < 2:
            raise ConfigError(f"search.candidates is {self.candidates}, need at least 2")
        if not 0.0 < self.lowest < 1.0:
            raise ConfigError(f"search.lowest is {self.lowest}, need (0, 1)")


class Scope(StrEnum):
    """What is folded into neighbouring layers; each holds what the one before holds."""

    OFF = "off"
    """BatchNormalization and constant scales into the layer before: no kernel runs them."""
    NORMS = "norms"
    """The scale and offset of every norm into the layers after it."""
    ALL = "all"
    """Per-channel scale and shift wherever they lower the error: range folding."""

    def __repr__(self) -> str:
        """Return the name in the source, so that a pass prints as the call that rebuilds it."""
        return f"Scope.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Folding:
    """How far scale and offset are moved across the graph; the float model stays the same."""

    scope: Scope = Scope.ALL

    max_growth: float = 4.0
    """A fold may not raise the range of any row of any weight by more than this factor, counted
    at unchanged energy of the activations that the row reads."""

    def __post_init__(self) -> None:
        """Reject what would not bound anything."""
        if self.max_growth < 1.0:
            raise ConfigError(f"folding.max_growth is {self.max_growth}, need 1 or more")


class Effort(StrEnum):
    """How much work goes into accuracy; each does what the one before does."""

    FAST = "fast"
    """Closed forms on statistics: no gradients, no torch."""
    DEFAULT = "default"
    """Errors weighted by what the output suffers from them; rounding learned for a few steps."""
    MAX = "max"
    """Learned for longer, and at last on the network as a whole."""

    def __repr__(self) -> str:
        """Return the name in the source, so that a pass prints as the call that rebuilds it."""
        return f"Effort.{self.name}"


class Extent(StrEnum):
    """How much of the network is placed on integer kernels."""

    FAST = "fast"
    """What is faster there on the target."""
    FULL = "full"
    """Everything that has an integer kernel, Softmax too: what papers call full quantization."""

    def __repr__(self) -> str:
        """Return the name in the source, so that a pass prints as the call that rebuilds it."""
        return f"Extent.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """How long rounding is learned; a compilation has its own by effort and precision."""

    samples: int
    """Calibration samples used, at most; 0 learns nothing, not even biases."""

    steps: int
    """Steps of gradient descent on each block; 0 corrects biases in closed form only."""

    finish: int
    """Steps on scales and biases of the whole network, when all blocks are learned."""

    def __post_init__(self) -> None:
        """Reject what could not be counted."""
        if min(self.samples, self.steps, self.finish) < 0:
            raise ConfigError("learning needs 0 or more samples, steps and finishing steps")


class Io(StrEnum):
    """What an emitted model takes and gives."""

    FLOAT = "float"
    """What the float model does."""
    UINT8 = "uint8"
    """Bytes, on the grids that the model's metadata tells, where a grid is known."""


DEVICES = ("auto", "cpu", "cuda")
"""Where rounding is learned; auto takes a GPU when torch sees one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """When a unit stays float because the output is measured to depend on it."""

    max_noise: float = 0.003
    """Output error allowed, as a fraction of the output's energy (0.003 is 25 dB): above it error
    counts as cost, and units are left float that make much of it and save little."""

    max_share: float = 0.2
    """At most this fraction of the cost that int8 saves may be given away by the guard."""

    samples: int = 32
    """Calibration samples on which it is measured, at most, and a quarter of that at effort fast; 0
    turns the guard off."""

    work: float = 2.4e11
    """Multiply-adds it may take, counted as a run of the network for every unit and sample: large
    models see fewer samples. Where it does not do for one, errors of units that are near to one
    another are followed to the output together. A quarter of it at effort fast, too."""

    weight: float = 0.0
    """What output error counts at least in placement: float runs of the network for an output that
    is all error. The guard raises it where that is not quiet enough."""

    def __post_init__(self) -> None:
        """Reject what no measurement could honour."""
        if self.max_noise <= 0.0:
            raise ConfigError(f"guard.max_noise is {self.max_noise}, need more than 0")
        if not 0.0 <= self.max_share <= 1.0:
            raise ConfigError(f"guard.max_share is {self.max_share}, need [0, 1]")
        if self.weight < 0.0:
            raise ConfigError(f"guard.weight is {self.weight}, need 0 or more")
        if self.samples < 0 or not self.work > 0.0:
            raise ConfigError(
                f"guard has {self.samples} samples and {self.work} work, need 0 or more, and more"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How the emitted model is compared with the float one."""

    samples: int = 16
    """Samples compared; taken from outside the calibration samples where the data has more."""

    rounds: int = 10
    """Runs of each model when they are timed; 0 does not time."""

    replay: int = 1
    """Samples on which every integer node is held to its reference kernel, at most; 0: none."""

    def __post_init__(self) -> None:
        """Reject what nothing could be compared on."""
        if self.samples < 1 or self.rounds < 0 or self.replay < 0:
            raise ConfigError("verification needs at least 1 sample, 0 or more rounds and replays")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileConfig:
    """One compilation, fully described; the default is what the README measures."""

    precision: str = "w8a8"
    """Bits of weights and activations: ``wXaY``, each of 4, 6, 8."""

    edge_precision: str = "w8a8"
    """The same for the first and the last layer, if it is finer."""

    bits: Mapping[str, str] = field(default_factory=dict)
    """Precision of single layers, by glob patterns on node names; the last match wins."""

    recipe: str = "qhv"
    """Name of a recipe in ``recipes.py``: how grids are searched."""

    effort: Effort | None = None
    """None takes DEFAULT where torch is installed, else FAST."""

    learning: Learning | None = None
    """None takes what effort and precision ask for."""

    device: str = "auto"
    """Where gradients are computed and rounding is learned."""

    placement: Extent = Extent.FAST
    """How much runs on integer kernels."""

    target: str = "auto"
    """Name of a target in ``targets.py``; ``auto`` takes the CPU this runs on."""

    emit_ort: bool = False
    """Also make the file of onnxruntime's own format, for the platform of the target."""

    io: Io = Io.FLOAT
    """What goes in and out of the emitted model."""

    approximate_gelu: bool = False
    """A GELU may run int8 even where its form there errs by more than its output is rounded."""

    embed_preprocess: bool = False
    """The emitted model takes pixels, 0 to 255, and does the arithmetic of ``preprocess``."""

    exclude: tuple[str, ...] = ()
    """Glob patterns on node names: these stay float."""

    force_int8: tuple[str, ...] = ()
    """Glob patterns on node names: of these, what can run int8 does, whatever it costs and whatever
    it does to the output."""

    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes used to calibrate inputs with free dims; the emitted model keeps its free dims."""

    calib_samples: int = 64
    """Samples read from the calibration data, and no more."""

    seed: int = 0
    """Seeds every draw: which samples, which positions."""

    folding: Folding = field(default_factory=Folding)
    search: Search = field(default_factory=Search)
    guard: Guard = field(default_factory=Guard)
    verification: Verification = field(default_factory=Verification)

    def __post_init__(self) -> None:
        """Reject what no pass could honour."""
        for text in (self.precision, self.edge_precision, *self.bits.values()):
            Precision.parse(text)
        find_recipe(self.recipe)
        if self.device not in DEVICES:
            raise ConfigError(f"device is {self.device!r}, need one of {', '.join(DEVICES)}")
        if self.calib_samples < 1:
            raise ConfigError(f"calib_samples is {self.calib_samples}, need at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, need 0 or more")
