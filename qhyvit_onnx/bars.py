# SPDX-License-Identifier: Apache-2.0
"""Progress on a terminal: a bar for the running pass, a line for every one that is done."""

from types import TracebackType
from typing import Self

from rich import progress
from rich.console import Console

from qhyvit_onnx.passes._base import Pass
from qhyvit_onnx.pipeline import Step
from qhyvit_onnx.progress import Loudness, Progress
from qhyvit_onnx.state import State


class Bars(Progress):
    """As Progress, with a bar below the lines while a pass runs (rich honours NO_COLOR)."""

    def __init__(self, loudness: Loudness = Loudness.NORMAL) -> None:
        """Prepare the bar; it shows while this is entered."""
        super().__init__(loudness)
        self._bars = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=30),
            progress.TextColumn("{task.fields[count]}"),
            progress.TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: progress.TaskID | None = None

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away, whatever happened."""
        self._bars.stop()

    def started(self, pass_: Pass) -> None:
        """Show a bar that only moves, until the pass says how far it is."""
        self._task = self._bars.add_task(pass_.name, total=None, count="")

    def progressed(self, done: int, total: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total, count=f"{done}/{total}")

    def finished(self, step: Step, state: State) -> None:
        """Put the line of the pass in place of its bar."""
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        super().finished(step, state)

    def say(self, line: str) -> None:
        """Write one line above the bar."""
        self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
