# SPDX-License-Identifier: Apache-2.0
"""From the fastest placement to careful ones, until one is accurate enough on the user's data."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.data import Feeds, Source, open_feeds
from qhyvit_onnx.data.labels import read_labels, with_labels
from qhyvit_onnx.data.preprocess import Recipe
from qhyvit_onnx.errors import ConfigError, TargetMissedError
from qhyvit_onnx.facts import DROP, PLACEMENT, PREDICTION, UNITS
from qhyvit_onnx.model_io import input_specs
from qhyvit_onnx.passes.measure import Measure
from qhyvit_onnx.pipeline import Watcher, run
from qhyvit_onnx.placements import Made, Parts
from qhyvit_onnx.speed_records import PointRecord
from qhyvit_onnx.state import State

SHARES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
"""Of the cost that int8 saves: so much may be given away for a quiet output, in turn."""

_SILENT = 1e-30
"""Output noise at which a placement would need no more care: none has so little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """How much the emitted model may lose, and on what that is measured."""

    max_drop: float
    """Points of top-1; without labels, of decisions that differ from float's."""

    data: Source
    """Anything that calibration takes; labels from class folders or the ``.npz``."""

    labels: Path | None = None
    """Class of every sample in the order of the data, in a file of its own."""

    def __post_init__(self) -> None:
        """Reject what no model could hold."""
        if not 0.0 <= self.max_drop <= 100.0:
            raise ConfigError(f"max_drop is {self.max_drop}, need 0 to 100 points")

    def open(
        self, source: onnx.ModelProto, config: CompileConfig, preprocess: str | Recipe | None
    ) -> Feeds:
        """Return all samples."""
        feeds = open_feeds(
            self.data, input_specs(source), samples=None, seed=config.seed,
            preprocess=preprocess, shapes=config.input_shapes,
        )  # fmt: skip
        return with_labels(feeds, read_labels(self.labels)) if self.labels else feeds


def sweep(parts: Parts, state: State, measure: Measure, max_drop: float, watcher: Watcher) -> Made:
    """Run ``parts`` until what is emitted loses at most ``max_drop``: the fastest that does.

    What comes before placement runs once. Every placement is the quietest that gives away a share
    of what int8 saves: by the weight of noise that makes it the cheapest.

    Error:
        TargetMissedError with the front when none holds; DataError for labels that fit nothing.
    """
    steps, front = run(parts.before, state, watcher), list[PointRecord]()
    seen: set[tuple[str, ...]] = set()
    for share in SHARES:
        start, fork = time.perf_counter(), state.fork()
        guard = replace(parts.place.guard, max_noise=_SILENT, max_share=share)
        own = run([replace(parts.place, guard=guard)], fork, watcher)
        if fork.get(PLACEMENT).int8 in seen:
            continue
        seen.add(fork.get(PLACEMENT).int8)
        own += run([*parts.between, measure], fork, watcher)
        front.append(_point(fork, share, max_drop, time.perf_counter() - start))
        if front[-1].holds:
            own += run([parts.verify], fork, watcher)
            return Made(fork, [*steps, *own], front)
    least = min(point.drop for point in front)
    what = fork.get(DROP).measure
    raise TargetMissedError(
        f"no placement loses at most {max_drop:g} {what}: the best of {len(front)} "
        f"loses {least:.2f}",
        hint="allow more, or try --effort max, or more calibration data",
        front=front,
    )


def _point(state: State, share: float, max_drop: float, seconds: float) -> PointRecord:
    prediction, drop = state.get(PREDICTION), state.get(DROP)
    return PointRecord(
        share=share,
        int8_units=len(state.get(PLACEMENT).int8),
        units=len(state.get(UNITS)),
        predicted_ratio=prediction.placed / prediction.in_float if prediction.in_float else 1.0,
        drop=drop.points,
        labelled=drop.labelled,
        holds=drop.points <= max_drop,
        seconds=seconds,
    )
