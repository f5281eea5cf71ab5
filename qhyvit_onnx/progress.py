# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr: bars on a terminal, one plain line for every finished pass elsewhere."""

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from types import TracebackType
from typing import Self

import click

from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.data import Deployable, Feeds, Origin, describe_first
from qhyvit_onnx.data.input_spec import show_shape
from qhyvit_onnx.facts import PLACEMENT, UNITS
from qhyvit_onnx.passes._base import Pass
from qhyvit_onnx.pipeline import Step, Watcher
from qhyvit_onnx.state import State

LABEL = 9
"""Width of the words in front of what is said before the passes run."""


class Loudness(StrEnum):
    """How much is said while compiling; warnings and errors always are."""

    QUIET = "quiet"
    NORMAL = "normal"
    VERBOSE = "verbose"


class Progress(Watcher):
    """Say on stderr what is used, then one line for every pass that ends."""

    def __init__(self, loudness: Loudness = Loudness.NORMAL) -> None:
        """Say nothing yet."""
        self._loudness = loudness
        self._planned: list[str] = []
        self._done = 0
        self._units_told = False

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was, whatever happened."""

    def opened(self, calibration: Feeds, held_back: Feeds | None, target: Target) -> None:
        """Say which data is used, how it was prepared, and whether it is fit for use."""
        if self._loudness is not Loudness.QUIET:
            for label, text in _used(calibration, held_back, target):
                self.say(f"{label:<{LABEL}}{text}")
        warn_origin(calibration.origin)

    def planned(self, passes: Sequence[Pass]) -> None:
        """Learn how many passes there are, or how many more."""
        self._planned += [item.name for item in passes]

    def finished(self, step: Step, state: State) -> None:
        """Say what a pass did; when verbose, its near-misses and where every unit was placed."""
        self._done += 1
        if self._loudness is Loudness.QUIET:
            return
        total, width = len(self._planned), max(map(len, self._planned), default=0)
        count = f"[{self._done:>{len(str(total))}}/{total}]"
        self.say(f"{count} {step.name:<{width}} {step.seconds:6.1f} s  {step.outcome.note}")
        if self._loudness is Loudness.VERBOSE:
            for reason, times in step.outcome.misses.items():
                self.say(f"{'':8}not matched, {times}x: {reason}")
            self._tell_units(state)

    def say(self, line: str) -> None:
        """Write one line to stderr."""
        click.echo(line, err=True)

    def _tell_units(self, state: State) -> None:
        """Say once, as soon as it is known, where every unit runs."""
        if self._units_told or not state.has(PLACEMENT):
            return
        self._units_told = True
        placement = state.get(PLACEMENT)
        for unit in state.get(UNITS):
            where = "int8 " if unit.name in placement.int8 else "float"
            why = placement.reasons.get(unit.name, "")
            self.say(f"{'':8}{where} {unit.kind:<15} {unit.name}" + (f"  ({why})" if why else ""))


def warn(text: str) -> None:
    """Write one warning to stderr, in colour where that is wanted."""
    plain = "NO_COLOR" in os.environ or not sys.stderr.isatty()
    line = f"WARNING: {text}"
    click.echo(line if plain else click.style(line, fg="yellow", bold=True), err=True)


def warn_origin(origin: Origin) -> None:
    """Say loudly that a model calibrated on data of this origin is not for deployment."""
    if origin.deployable is not Deployable.YES:
        warn(not_deployable(str(origin.kind)))


def not_deployable(kind: str) -> str:
    """Return what must be said about a model calibrated on ``kind`` of data."""
    return (
        f"calibrated on {kind}: {Deployable.FIRST_LOOK}; give --calib data like the model will meet"
    )


def _used(calibration: Feeds, held_back: Feeds | None, target: Target) -> list[tuple[str, str]]:
    """Return (label, text) of what is used: target, data, recipe, first sample, notes."""
    origin = calibration.origin
    kept = f", {len(held_back)} held back to compare on" if held_back else ""
    source = " ".join(part for part in (str(origin.kind), origin.path) if part)
    rows = [
        ("target", f"{target.name}: {target.summary}"),
        ("data", f"{source}: {len(calibration)} of {origin.available} samples{kept}"),
    ]
    if origin.recipe and not any(origin.recipe in note for note in origin.notes):
        rows.append(("recipe", origin.recipe))
    for name, shape, low, mean, high in describe_first(calibration):
        text = f"{name} {show_shape(shape)} min {low:.4g}, mean {mean:.4g}, max {high:.4g}"
        rows.append(("first", text))
    return [*rows, *(("note", note) for note in origin.notes)]
