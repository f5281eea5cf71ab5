# SPDX-License-Identifier: Apache-2.0
"""Where everything lies: rows of regions one below the other, with the lines between them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from qhyvit_onnx.drawing.captions import Sizes, bridge_title
from qhyvit_onnx.drawing.marks import Mark, one_sided_marks, spread_marks
from qhyvit_onnx.drawing.strip import Box, boxes
from qhyvit_onnx.drawing.tracks import Link, Track, tracks
from qhyvit_onnx.inspection import Inspection

WIDTH, LEFT, RIGHT = 1480, 44, 1404
"""The page, and where regions lie on it: lines that go on in another row need the rest."""
HEAD = 164
"""Room for title and legend."""
LABELS = 102
"""Height of a region without marks."""
MARK, ABOVE, BELOW, BETWEEN = 24, 22, 11, 30
"""Distance of marks; of tracks above and below a row; of rows."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of regions: where its boxes begin, how high they are, where its lines end."""

    top: int
    height: int
    bottom: int


@dataclass(frozen=True, slots=True)
class Plan:
    """An inspection, and where each part of it lies."""

    found: Inspection
    sizes: Sizes
    wide: Sequence[Mark]
    sided: Sequence[Mark]
    boxes: Sequence[Box]
    above: Sequence[Track]
    """Bridges between regions that are no neighbours."""
    below: Sequence[Track]
    """What is read further on too."""
    rows: Sequence[Row]

    @classmethod
    def of(cls, found: Inspection) -> "Plan":
        """Return the plan of ``found``, which has regions."""
        sizes = Sizes.of((*found.inputs, *found.outputs))
        wide, sided = spread_marks(found.observed), one_sided_marks(found.observed)
        placed = boxes(found, LEFT, RIGHT)
        above = tracks(placed, list(_far_bridges(found, sizes)))
        below = tracks(placed, list(_skips(found)))
        rows = list(_rows(placed, above, below, [*wide, *sided]))
        return cls(found, sizes, wide, sided, placed, above, below, rows)

    def marks(self, box: Box) -> list[Mark]:
        """Return the marks of one region."""
        return _marks([*self.wide, *self.sided], box)


def crossing(found: Inspection, link: tuple[int, int]) -> list[int]:
    """Return the places of the bridges that cross from one region to another."""
    return [at for at, bridge in enumerate(found.bridges) if link in bridge.crosses]


def marks_a_line(box: Box) -> int:
    """Return how many marks fit beside each other in a box."""
    return (box.width - 8) // MARK


def _far_bridges(found: Inspection, sizes: Sizes) -> Iterator[Link]:
    for at, bridge in enumerate(found.bridges, 1):
        for source, target in bridge.crosses:
            if target > source + 1:
                label = f"B{at} {bridge.direction} {sizes.size(bridge.size)}"
                yield Link(source, target, label, bridge_title(bridge, f"B{at}"))


def _skips(found: Inspection) -> Iterator[Link]:
    for source, target in found.flows:
        if target != source + 1 and not crossing(found, (source, target)):
            title = f"region {target + 1} reads region {source + 1} too"
            yield Link(source, target, title=title)


def _rows(
    placed: Sequence[Box], above: Sequence[Track], below: Sequence[Track], marks: Sequence[Mark]
) -> Iterator[Row]:
    y = HEAD
    for row in range(placed[-1].row + 1):
        lines = (
            ceil(len(_marks(marks, box)) / marks_a_line(box)) for box in placed if box.row == row
        )
        top = y + ABOVE * _lanes(above, row)
        height = LABELS + MARK * max(lines)
        bottom = top + height + BELOW * _lanes(below, row)
        yield Row(top, height, bottom)
        y = bottom + BETWEEN


def _marks(marks: Sequence[Mark], box: Box) -> list[Mark]:
    return [mark for mark in marks if mark.region == box.place]


def _lanes(pieces: Sequence[Track], row: int) -> int:
    return max((piece.lane + 1 for piece in pieces if piece.row == row), default=0)
