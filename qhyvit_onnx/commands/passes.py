# SPDX-License-Identifier: Apache-2.0
"""``qhv-onnx passes``: the pipeline as it is, in order."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qhyvit_onnx.passes._base import Pass


@click.command()
def command() -> None:
    """List what compile does, in order; a pass that is off says so."""
    from qhyvit_onnx.config import CompileConfig
    from qhyvit_onnx.pipeline import check_order, default_pipeline
    from qhyvit_onnx.tables import filled, show
    from qhyvit_onnx.targets import TARGETS

    passes = default_pipeline(CompileConfig(), TARGETS[0])
    check_order(passes)
    rows = [(number, item.name, _told(item)) for number, item in enumerate(passes, 1)]
    show([filled(("#>", "pass!", "does"), rows)])


def _told(item: "Pass") -> str:
    """Return what a pass does, and below it what it takes and leaves, or that it is off."""
    needs, gives = (", ".join(fact.name for fact in facts) for facts in (item.needs, item.gives))
    parts = (f"needs {needs}" if needs else "", f"gives {gives}" if gives else "", _off(item))
    below = "; ".join(part for part in parts if part)
    return f"{item.summary}\n  {below}" if below else item.summary


def _off(item: "Pass") -> str:
    """Return what a pass that is off says of itself, asked on an empty graph; else nothing."""
    from onnx import helper

    from qhyvit_onnx.config import CompileConfig
    from qhyvit_onnx.data import Feeds
    from qhyvit_onnx.state import State

    if item.needs or item.gives:
        return ""
    empty = helper.make_model(helper.make_graph([], "empty", [], []))
    note = item.run(State(empty, CompileConfig(), Feeds.of([]))).note
    return note if note.startswith("off") else ""
