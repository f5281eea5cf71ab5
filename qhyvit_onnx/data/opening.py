# SPDX-License-Identifier: Apache-2.0
"""From a source of any kind to feeds: samples checked against the inputs, stacked to the batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from qhyvit_onnx.data.feeds import Feeds, Raw, Request, Source
from qhyvit_onnx.data.input_spec import (
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
from qhyvit_onnx.errors import ConfigError, DataError

if TYPE_CHECKING:
    from qhyvit_onnx.data.preprocess import Recipe


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
    from qhyvit_onnx.data.sources import read  # noqa: PLC0415 - loads Pillow and pydantic

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
