# SPDX-License-Identifier: Apache-2.0
"""The page: title and legend, the strip, and tables at its foot."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from qhyvit_onnx.drawing import figures
from qhyvit_onnx.drawing.captions import clean, counted, shortened
from qhyvit_onnx.drawing.figures import Figure
from qhyvit_onnx.drawing.marks import marked_of
from qhyvit_onnx.drawing.plan import LEFT, WIDTH, Plan
from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.inspection import Inspection, Port
from qhyvit_onnx.work import shown_work

LINE = 18
"""Distance of the lines of a table."""
TABLE = 56
"""Height of a table without lines, and the room below it."""


def draw(found: Inspection) -> str:
    """Return ``found`` as an SVG document; equal inspections give equal text.

    Error:
        ModelError when there is nothing to draw.
    """
    if not found.regions:
        raise ModelError(f"{found.path} has no regions to draw: nothing in it mixes positions")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["clean"] = clean
    return environment.from_string(_template()).render(_contents(Plan.of(found)))


def _template() -> str:
    return (files("qhyvit_onnx.drawing") / "map.svg.j2").read_text(encoding="utf-8")


def _contents(plan: Plan) -> Figure:
    """Return everything that the template draws, by name."""
    return {
        "width": WIDTH,
        "left": LEFT,
        "line": LINE,
        "title": shortened(Path(plan.found.path).stem, 80),
        "about": _about(plan.found),
        "ports": shortened(_ports(plan), 180),
        "scaled_by": "nodes" if plan.found.macs is None else "multiply-adds",
        "regions": list(figures.regions(plan)),
        "arrows": list(figures.arrows(plan)),
        "above": list(figures.lines_above(plan)),
        "below": list(figures.lines_below(plan)),
        "observed": plan.found.observed,
        **_tables(plan),
    }


def _tables(plan: Plan) -> Figure:
    """Return the tables, where they are, and how high that makes the page."""
    bridges, seen = list(figures.bridge_rows(plan)), plan.found.observed
    foot = plan.rows[-1].bottom + 12
    trouble = foot + (TABLE + LINE * len(bridges) if bridges else 0)
    note = trouble + TABLE + 6 + LINE * max(len(plan.wide), len(plan.sided), 1)
    return {
        "foot": foot,
        "bridges": bridges,
        "trouble": trouble,
        "wide": plan.wide,
        "sided": plan.sided,
        "spreads": marked_of(plan.wide, len(seen.spreads) if seen else 0),
        "one_sided": marked_of(plan.sided, len(seen.one_sided) if seen else 0),
        "note": note,
        "height": (note if seen else trouble) + 36,
    }


def _about(found: Inspection) -> str:
    parts = [
        counted(len(found.regions), "region"),
        counted(len(found.bridges), "bridge"),
        counted(found.nodes_normalised, "node"),
        f"{shown_work(found.parameters)} parameters",
    ]
    if found.macs is not None:
        parts.append(f"{shown_work(found.macs)} multiply-adds")
    return " · ".join(parts)


def _ports(plan: Plan) -> str:
    """Return inputs and outputs with their shapes, and what the letters in them mean."""

    def told(ports: Sequence[Port]) -> str:
        return ", ".join(f"{port.name} {plan.sizes.shape(port.shape)}" for port in ports)

    text = f"{told(plan.found.inputs)} → {told(plan.found.outputs)}"
    return f"{text}   ({plan.sizes.legend})" if plan.sizes.legend else text
