# SPDX-License-Identifier: Apache-2.0
"""Samples that can be walked again, one in memory at a time, and where they came from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from qhyvit_onnx.data.input_spec import Feed, InputSpec
from qhyvit_onnx.errors import DataError

if TYPE_CHECKING:
    from qhyvit_onnx.data.preprocess import Recipe

Source: TypeAlias = Any
"""A path, the word ``random``, None for the bundled images, arrays, or a CalibrationDataReader."""


class Kind(StrEnum):
    """Where samples come from."""

    IMAGES = "images"
    ARRAYS = "arrays"
    MEMORY = "arrays in memory"
    BUNDLED = "bundled images"
    RANDOM = "random noise"


class Deployable(StrEnum):
    """Whether a model calibrated on these samples may be shipped."""

    YES = "yes"
    FIRST_LOOK = "first look, not for deployment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which data was used, precisely enough to write into a report and to compare two runs."""

    kind: Kind = Kind.MEMORY
    path: str = ""
    """As the caller wrote it; empty when the data has no path."""
    taken: int = 0
    """Samples that are fed."""
    available: int = 0
    """Samples that the source holds; equal to ``taken`` where that cannot be known."""
    seed: int = 0
    deployable: Deployable = Deployable.YES
    sha256: str = ""
    """Of the samples taken: names and contents of files, or type, shape and bytes of arrays."""
    recipe: str = ""
    """How images became inputs, one line; empty when arrays were fed as they are."""
    notes: tuple[str, ...] = ()
    """What the user should be told: defaults taken, samples dropped."""


@dataclass(frozen=True)
class Feeds:
    """Samples for a model: walk it as often as needed, each walk gives the same arrays.

    ``labels`` holds one class index a sample, in the order of the walk; a feed of batch n has n.
    """

    walk: Callable[[], Iterator[Feed]]
    count: int
    origin: Origin = field(default_factory=Origin)
    labels: tuple[int, ...] | None = None

    @classmethod
    def of(cls, samples: Sequence[Feed], origin: Origin | None = None) -> "Feeds":
        """Return feeds over samples that are in memory already, unchecked."""
        count = len(samples)
        return cls(lambda: iter(samples), count, origin or Origin(taken=count, available=count))

    def __iter__(self) -> Iterator[Feed]:
        """Walk from the first sample."""
        return self.walk()

    def __len__(self) -> int:
        """Return the number of feeds in one walk."""
        return self.count

    @property
    def batch(self) -> int:
        """Samples in one feed."""
        return max(1, self.origin.taken // max(self.count, 1))

    def mapped(self, change: Callable[[Feed], Feed]) -> "Feeds":
        """Return the samples as ``change`` makes them."""
        return replace(self, walk=lambda: map(change, self.walk()))

    def split(self, samples: int) -> "tuple[Feeds, Feeds | None]":
        """Return the first ``samples`` (rounded up to whole feeds), and the rest if any."""
        first = -(-samples // self.batch)
        if first >= self.count:
            return self, None
        return self._part(0, first), self._part(first, self.count)

    def _part(self, start: int, stop: int) -> "Feeds":
        batch, labels = self.batch, self.labels
        return replace(
            self,
            walk=lambda: islice(self.walk(), start, stop),
            count=stop - start,
            origin=replace(self.origin, taken=(stop - start) * batch),
            labels=labels[start * batch : stop * batch] if labels else labels,
        )


@dataclass(frozen=True)
class Raw:
    """Single samples as a reader found them: chosen, unchecked, each with where it came from."""

    walk: Callable[[], Iterator[tuple[str, Mapping[str, Any]]]]
    origin: Origin
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Request:
    """What the caller wants of a source."""

    inputs: tuple[InputSpec, ...]
    samples: int | None
    """At most so many; None takes all."""
    seed: int
    preprocess: "str | Recipe | None"

    def picks(self, available: int) -> list[int]:
        """Return which samples to take: all in order, or a seeded draw in the order drawn."""
        if self.samples is None:
            return list(range(available))
        order = np.random.default_rng(self.seed).permutation(available)
        return [int(index) for index in order[: self.samples]]


def describe_first(feeds: Feeds) -> list[tuple[str, tuple[int, ...], float, float, float]]:
    """Return (name, shape, min, mean, max) of every input in the first feed."""
    first = next(iter(feeds), None)
    if first is None:
        raise DataError("there are no samples")
    return [
        (name, x.shape, float(x.min()), float(x.mean(dtype=np.float64)), float(x.max()))
        for name, x in first.items()
    ]
