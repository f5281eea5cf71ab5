# SPDX-License-Identifier: Apache-2.0
"""Lines between regions that are not neighbours: on tracks beside the row, like rails.

A line from one row to a later one ends at the end of its row, and begins anew where it arrives;
rows that it only passes show nothing of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qhyvit_onnx.drawing.strip import Box

STUB = 70
"""Length of a line that goes on in another row."""
LETTER = 7
"""Width of one character of a label, at most."""


@dataclass(frozen=True, slots=True)
class Link:
    """A line that is wanted between two boxes."""

    source: int
    target: int
    label: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Track:
    """A piece of a link within one row, from ``x1`` to ``x2`` on lane ``lane``.

    ``begins`` and ``ends`` tell whether it meets its boxes, or goes on in another row.
    """

    row: int
    x1: int
    x2: int
    begins: bool
    ends: bool
    link: Link
    lane: int = 0

    @property
    def reach(self) -> int:
        """Where the line or its label ends."""
        return max(self.x2, self.x1 + LETTER * len(self.link.label))


def tracks(boxes: Sequence[Box], links: Sequence[Link]) -> list[Track]:
    """Return every piece of every link; no two pieces on one lane of a row overlap."""
    pieces = [piece for link in links for piece in _pieces(boxes, link)]
    return list(_on_lanes(sorted(pieces, key=lambda piece: (piece.row, piece.x2 - piece.x1))))


def _pieces(boxes: Sequence[Box], link: Link) -> Iterator[Track]:
    source, target = boxes[link.source], boxes[link.target]
    if source.row == target.row:
        x1, x2 = sorted((source.exit, target.entry))
        yield Track(source.row, x1, x2, begins=True, ends=True, link=link)
        return
    yield Track(source.row, source.exit, source.exit + STUB, begins=True, ends=False, link=link)
    yield Track(target.row, target.entry - STUB, target.entry, begins=False, ends=True, link=link)


def _on_lanes(pieces: Sequence[Track]) -> Iterator[Track]:
    """Yield each piece on the lowest lane that is free there, short ones first."""
    taken: dict[tuple[int, int], list[Track]] = {}
    for piece in pieces:
        lane = 0
        while any(_meet(piece, other) for other in taken.get((piece.row, lane), [])):
            lane += 1
        taken.setdefault((piece.row, lane), []).append(piece)
        yield replace(piece, lane=lane)


def _meet(a: Track, b: Track) -> bool:
    return a.x1 < b.reach + 8 and b.x1 < a.reach + 8
