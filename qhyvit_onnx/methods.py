# SPDX-License-Identifier: Apache-2.0
"""The words in which published methods are told: what each one chooses, and among what."""

from dataclasses import dataclass
from enum import StrEnum


class Ends(StrEnum):
    """Where an activation range ends before anything is searched."""

    EXTREMES = "extremes"
    PERCENTILE = "percentile"
    """The 99.99th on either side."""
    BEST_PERCENTILE = "best percentile"
    """The 99.9th, 99.99th or 99.999th, whichever has the least squared error."""


class Scheme(StrEnum):
    """Where the zero point lies."""

    ASYMMETRIC = "asymmetric"
    SYMMETRIC = "symmetric"
    """In the middle of the codes."""


class Overflow(StrEnum):
    """What becomes of the zero point when a range excludes zero."""

    COVERED = "covered"
    """The range is widened to zero first: nothing overflows."""
    CLAMPED = "clamped"
    """To the type: what lies beyond the length of the range saturates."""
    FREE = "free"
    """Nothing: a number that no integer tensor could hold."""


class Rows(StrEnum):
    """Which weights have a scale for every output channel; the others have one a tensor."""

    ALL = "all"
    CONVOLUTIONS = "convolutions"
    NONE = "none"


class Attention(StrEnum):
    """How what a softmax writes is quantized."""

    UNIFORM = "uniform"
    LOG2 = "log2"
    LOG_SQRT2 = "log sqrt2"
    TWIN = "twin"
    """Two uniform ranges, one bit tells which."""


class Tails(StrEnum):
    """How what a GELU or SiLU writes is quantized: its negative values are few and small."""

    UNIFORM = "uniform"
    TWIN = "twin"
    """A fixed step below zero, a searched one above."""


class Norms(StrEnum):
    """What norms read and write."""

    PLAIN = "plain"
    POWERS_OF_TWO = "powers of two"
    """What a norm reads: one scale, times 1, 2, 4 or 8 for each channel."""
    CHANNELS = "channels"
    """What a norm writes: a scale and zero point for each channel."""


class Metric(StrEnum):
    """What an error of a layer's output costs."""

    COSINE = "cosine"
    """One less the cosine between the outputs."""
    HESSIAN = "hessian"
    """Its square, times the squared gradient of the loss there."""


class Freedom(StrEnum):
    """What is searched for an activation beside its scale."""

    GRANULARITY = "granularity"
    """One scale, or one for each channel."""
    SCHEME = "scheme"
    """Symmetric or asymmetric."""
    HEADS = "heads"
    """Nothing more: each head of an attention product has scales of its own."""


class Whole(StrEnum):
    """What counts as one piece, measured where it ends."""

    LAYERS = "layers"
    """Every layer and product by itself."""
    BRIDGES = "bridges"
    """The layers of a bridge together; the others by themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSearch:
    """Scales of weights and activations, alternately, by the error of what their layers write."""

    metric: Metric
    lowest: float
    highest: float
    """Candidates, as a fraction of the scale that just holds the largest value."""
    candidates: int = 100
    """Steps from the lowest to the highest."""
    rounds: int = 1
    freedoms: frozenset[Freedom] = frozenset()
    whole: Whole = Whole.LAYERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How one published method picks its grids."""

    ends: Ends = Ends.EXTREMES
    scheme: Scheme = Scheme.SYMMETRIC
    """Of weights. An asymmetric one has the ends of each row."""
    overflow: Overflow = Overflow.COVERED
    weights: Rows = Rows.ALL
    attention: Attention = Attention.UNIFORM
    tails: Tails = Tails.UNIFORM
    norms: Norms = Norms.PLAIN
    outputs: OutputSearch | None = None
    """None: ranges are all there is."""
