# SPDX-License-Identifier: Apache-2.0
"""Calibration and evaluation data: samples that can be walked again, one in memory at a time.

Nothing heavier than numpy is imported here; images, recipes and their libraries load when data is
opened.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from qhyvit_onnx.errors import ConfigError, DataError
from qhyvit_onnx.input_spec import (
    Array,
    Feed,
    InputSpec,
    batch_of,
    conform,
    is_batched,
    resolve_shapes,
    show_shape,
    single,
)

if TYPE_CHECKING:
    from qhyvit_onnx.preprocess import Recipe

__all__ = [
    "Deployable",
    "Feed",
    "Feeds",
    "InputSpec",
    "Kind",
    "Origin",
    "Source",
    "describe_first",
    "open_feeds",
]

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


def open_feeds(
    source: Source,
    inputs: Sequence[InputSpec],
    *,
    samples: int | None = None,
    seed: int = 0,
    preprocess: "str | Recipe | None" = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Feeds:
    """Return the samples of ``source`` as feeds for ``inputs``.

    ``source`` is a folder of images (class sub-folders become labels), one image, a ``.npy`` or
    ``.npz`` file, a folder of those, the word ``random``, None for the bundled images, a mapping
    of names to arrays of N samples, an iterable of ``{name: array}``, or an ORT
    CalibrationDataReader.
    ``samples`` limits how many are taken (None: all): files and arrays by a seeded draw, iterables
    from their start. ``shapes`` fills free dims.

    Error:
        ConfigError for options that cannot be met; DataError, here or while walking, for the data.
    """
    from qhyvit_onnx.sources import read  # noqa: PLC0415 - loads Pillow and pydantic

    if samples is not None and samples < 1:
        raise ConfigError(f"{samples} samples were asked for, need at least 1")
    specs = resolve_shapes(inputs, shapes or {})
    raw = read(source, Request(specs, samples, seed, preprocess))
    return _batched(raw, specs)


def _batched(raw: Raw, specs: Sequence[InputSpec]) -> Feeds:
    """Return ``raw`` checked and stacked to the batch of the model."""
    batch = batch_of(specs)
    count, rest = divmod(raw.origin.taken, batch)
    if count == 0:
        raise DataError(f"the model takes {batch} samples at a time, found {raw.origin.taken}")
    origin, labels = raw.origin, raw.labels
    if rest:
        note = f"{rest} samples dropped: the model takes {batch} at a time"
        origin = replace(origin, taken=count * batch, notes=(*origin.notes, note))
        labels = labels[: count * batch] if labels else labels
    singles = tuple(single(spec, batch) for spec in specs)

    def walk() -> Iterator[Feed]:
        checked = (conform(feed, singles, where) for where, feed in raw.walk())
        yield from checked if batch == 1 else _stacked(checked, specs, batch)

    return Feeds(walk, count, origin, labels)


def _stacked(feeds: Iterator[Feed], specs: Sequence[InputSpec], batch: int) -> Iterator[Feed]:
    """Yield ``batch`` samples at a time as one feed; a rest that fills no batch is dropped."""
    group: list[Feed] = []
    for feed in feeds:
        group.append(feed)
        if len(group) == batch:
            yield {spec.name: _stack(group, spec, batch) for spec in specs}
            group.clear()


def _stack(group: Sequence[Feed], spec: InputSpec, batch: int) -> Array:
    arrays = [feed[spec.name] for feed in group]
    if not is_batched(spec, batch):
        return arrays[0]
    if len({array.shape for array in arrays}) > 1:
        found = ", ".join(sorted({show_shape(array.shape) for array in arrays}))
        raise DataError(f"input {spec.name}: samples of one batch differ in shape: {found}")
    return np.concatenate(arrays)


def describe_first(feeds: Feeds) -> list[tuple[str, tuple[int, ...], float, float, float]]:
    """Return (name, shape, min, mean, max) of every input in the first feed."""
    first = next(iter(feeds), None)
    if first is None:
        raise DataError("there are no samples")
    return [
        (name, x.shape, float(x.min()), float(x.mean(dtype=np.float64)), float(x.max()))
        for name, x in first.items()
    ]
