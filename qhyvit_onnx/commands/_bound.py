# SPDX-License-Identifier: Apache-2.0
"""The options of ``compile`` that bound what accuracy may be lost, and what is told if it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qhyvit_onnx.commands import _options
from qhyvit_onnx.commands._options import Command
from qhyvit_onnx.errors import ConfigError, TargetMissedError

if TYPE_CHECKING:
    from qhyvit_onnx.sweep import Bound

OPTIONS = (
    click.option(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="Emit the fastest placement that loses at most so much on the --eval data: points of "
        "top-1, or without labels of decisions. Exit status 5 when none does.",
    ),
    click.option(
        "--eval",
        "evaluation",
        metavar="DATA",
        help="Data for --max-drop, prepared like --calib; labels are class folders, or in the "
        ".npz.",
    ),
    click.option(
        "--labels",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Class of every sample of --eval: .npy, or a number a line.",
    ),
)


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound as it was asked for."""

    max_drop: float
    data: str
    labels: Path | None

    def bound(self) -> "Bound":
        """Return the bound; ConfigError when it makes no sense."""
        from qhyvit_onnx.sweep import Bound

        return Bound(max_drop=self.max_drop, data=self.data, labels=self.labels)


def bound(command: Command) -> Command:
    """Let ``command`` take all of OPTIONS, as one argument ``limit``."""
    return _options.gathered(command, OPTIONS, _limit, "limit")


def _limit(*, max_drop: float | None, evaluation: str | None, labels: Path | None) -> Limit | None:
    if max_drop is None and evaluation is None and labels is None:
        return None
    if max_drop is None or evaluation is None:
        raise ConfigError("--max-drop POINTS and --eval DATA go together")
    return Limit(max_drop, evaluation, labels)


@contextmanager
def telling_front() -> Iterator[None]:
    """Print what was tried when no placement holds the bound; the error goes on."""
    try:
        yield
    except TargetMissedError as error:
        from qhyvit_onnx.summary import front_table
        from qhyvit_onnx.tables import show

        show([front_table(error.front)])
        raise
