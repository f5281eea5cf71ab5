# SPDX-License-Identifier: Apache-2.0
"""Class labels that come in a file of their own, and draws that keep labels with their samples."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qhyvit_onnx.data.feeds import Feeds
from qhyvit_onnx.errors import DataError


def read_labels(path: Path) -> tuple[int, ...]:
    """Return class indices from a ``.npy`` file, or from text with one number a line."""
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            array = np.array([int(word) for word in path.read_text("utf-8").split()], np.int64)
    except OSError as error:
        raise DataError(f"cannot read labels {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(
            f"cannot read labels {path}: {error}", hint="give .npy, or text with a number a line"
        ) from error
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"labels {path}: expected a row of integers, found {array.dtype}")
    return tuple(int(label) for label in array)


def with_labels(feeds: Feeds, labels: Sequence[int]) -> Feeds:
    """Return ``feeds``, which must hold all samples in their order, with ``labels``."""
    if len(labels) != feeds.origin.available:
        raise DataError(
            f"--labels holds {len(labels)} labels, the data {feeds.origin.available} samples",
            hint="give one label a sample, in the sorted order of the files",
        )
    return replace(feeds, labels=tuple(labels[: feeds.origin.taken]))


def by_run(feeds: Feeds) -> list[tuple[int, ...]]:
    """Return the labels of ``feeds`` in one group a run; empty when there are none."""
    labels, size = feeds.labels or (), _samples_a_run(feeds)
    return [labels[start : start + size] for start in range(0, len(labels), size)]


def draw(feeds: Feeds, samples: int, seed: int) -> Feeds:
    """Return a seeded draw of at most ``samples`` samples with their labels, order kept."""
    size, groups = _samples_a_run(feeds), by_run(feeds)
    order = np.random.default_rng(seed).permutation(len(feeds))
    chosen = sorted(int(index) for index in order[: max(samples // size, 1)])
    wanted = frozenset(chosen)
    kept = tuple(label for index in chosen if groups for label in groups[index])
    return replace(
        feeds,
        walk=lambda: (feed for index, feed in enumerate(feeds) if index in wanted),
        count=len(chosen),
        origin=replace(feeds.origin, taken=len(chosen) * size, seed=seed),
        labels=kept or None,
    )


def _samples_a_run(feeds: Feeds) -> int:
    return max(feeds.origin.taken // max(len(feeds), 1), 1)
