# SPDX-License-Identifier: Apache-2.0
"""What the template draws, piece by piece: boxes with their labels, arrows, lines, tables."""

from collections.abc import Iterator
from typing import Any, TypeAlias

from qhyvit_onnx.drawing.captions import (
    bridge_title,
    counted,
    crossings,
    ends,
    region_title,
    shortened,
    work_label,
)
from qhyvit_onnx.drawing.plan import (
    ABOVE,
    BELOW,
    LABELS,
    MARK,
    Plan,
    crossing,
    marks_a_line,
)
from qhyvit_onnx.drawing.strip import Box
from qhyvit_onnx.drawing.tracks import Track
from qhyvit_onnx.work import shown_work

Figure: TypeAlias = dict[str, Any]
"""One thing to draw, by the names that the template uses."""

MIDDLE = 58
"""Height of arrows between regions, from the top of the row."""


def regions(plan: Plan) -> Iterator[Figure]:
    """Yield every region with its labels and marks."""
    total = plan.found.macs
    for box in plan.boxes:
        region, row = plan.found.regions[box.place], plan.rows[box.row]
        yield {
            "x": box.x, "y": row.top, "width": box.width, "height": row.height,
            "number": box.place + 1, "side": region.side, "size": plan.sizes.size(region.size),
            "lines": (
                f"{ends(region)} ch",
                counted(region.layers, "layer"),
                work_label(region.macs, total),
            ),
            "inside": " ".join(
                f"B{at + 1}" for at in crossing(plan.found, (box.place, box.place))
            ),
            "title": region_title(region, box.place, total, plan.sizes),
            "marks": list(_marks(plan, box, row.top + LABELS + 9)),
        }  # fmt: skip


def _marks(plan: Plan, box: Box, y: int) -> Iterator[Figure]:
    for at, mark in enumerate(plan.marks(box)):
        line, place = divmod(at, marks_a_line(box))
        yield {"x": box.x + 15 + MARK * place, "y": y + MARK * line, "mark": mark}


def arrows(plan: Plan) -> Iterator[Figure]:
    """Yield what leads from each region to the next: a bridge, or a plain arrow."""
    found = plan.found
    for box, following in zip(plan.boxes, plan.boxes[1:], strict=False):
        link = (box.place, following.place)
        over = [(f"B{at + 1}", found.bridges[at]) for at in crossing(found, link)]
        if not over and link not in found.flows:
            continue
        same = box.row == following.row
        yield {
            "x": following.x - following.gap, "end": following.x,
            "y": plan.rows[following.row].top + MIDDLE,
            "broken": None if same else {"x": box.right, "y": plan.rows[box.row].top + MIDDLE},
            "name": " ".join(name for name, _ in over),
            "size": plan.sizes.size(over[0][1].size) if over else "",
            "way": over[0][1].direction if over else "",
            "title": "\n".join(bridge_title(bridge, name) for name, bridge in over),
        }  # fmt: skip


def lines_above(plan: Plan) -> Iterator[Figure]:
    """Yield the bridges between regions that are no neighbours."""
    for piece in plan.above:
        edge = plan.rows[piece.row].top
        yield _line(piece, edge, edge - 14 - ABOVE * piece.lane)


def lines_below(plan: Plan) -> Iterator[Figure]:
    """Yield the lines to regions further on."""
    for piece in plan.below:
        edge = plan.rows[piece.row].top + plan.rows[piece.row].height
        yield _line(piece, edge, edge + 9 + BELOW * piece.lane)


def _line(piece: Track, edge: int, y: int) -> Figure:
    far = piece.link.target if piece.begins else piece.link.source
    return {
        "x1": piece.x1, "x2": piece.x2, "edge": edge, "y": y,
        "begins": piece.begins, "ends": piece.ends, "far": far + 1,
        "label": piece.link.label, "title": piece.link.title,
    }  # fmt: skip


def bridge_rows(plan: Plan) -> Iterator[Figure]:
    """Yield the lines of the table of bridges."""
    for at, bridge in enumerate(plan.found.bridges, 1):
        yield {
            "cells": (
                f"B{at}",
                bridge.direction,
                plan.sizes.size(bridge.size),
                shortened(crossings(bridge), 40),
                str(bridge.layers),
                shown_work(bridge.macs),
                shortened(bridge.why.removeprefix(f"{bridge.size}: "), 130),
            ),
            "title": bridge_title(bridge, f"B{at}"),
        }
