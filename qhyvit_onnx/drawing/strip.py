# SPDX-License-Identifier: Apache-2.0
"""Where every region is drawn: boxes in a row as long as the page, in rows of equal length.

All lengths are in user units of the SVG (pixels at 100 %); y grows downwards.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

from qhyvit_onnx.inspection import Inspection, RegionView

NARROW, WIDEST = 116, 236
"""Widths of boxes: the narrowest still holds its labels."""
GAP, BRIDGED = 22, 74
"""Distance to the box before; where a bridge crosses, its arrow fits between."""
MOST = 1.3
"""Boxes are drawn up to so many times as wide when the rows have room for it."""


@dataclass(frozen=True, slots=True)
class Box:
    """One region on the page."""

    place: int
    """In ``Inspection.regions``."""
    row: int
    x: int
    width: int
    gap: int
    """Room to the left of it."""

    @property
    def right(self) -> int:
        """Where it ends."""
        return self.x + self.width

    @property
    def entry(self) -> int:
        """Where lines from further back come in."""
        return self.x + self.width // 3

    @property
    def exit(self) -> int:
        """Where lines to further on go out."""
        return self.right - self.width // 3


def boxes(found: Inspection, left: int, right: int) -> list[Box]:
    """Return every region between ``left`` and ``right``, in as few rows as hold them."""
    widths = box_widths(found.regions)
    room = right - left
    over = {link for bridge in found.bridges for link in bridge.crosses}
    gaps = [BRIDGED if (at - 1, at) in over else GAP for at in range(len(widths))]
    spans = [width + gap for width, gap in zip(widths, gaps, strict=True)]
    rows = split_evenly(spans, room)
    larger = min(MOST, *(_stretch(row, widths, gaps, room) for row in rows))
    made: list[Box] = []
    for row, places in enumerate(rows):
        x = left
        for place in places:
            x += gaps[place]
            made.append(Box(place, row, x, int(widths[place] * larger), gaps[place]))
            x = made[-1].right
    return made


def _stretch(row: Sequence[int], widths: Sequence[int], gaps: Sequence[int], room: int) -> float:
    """Return how many times as wide the boxes of a row could be."""
    return (room - sum(gaps[at] for at in row)) / sum(widths[at] for at in row)


def box_widths(regions: Sequence[RegionView]) -> list[int]:
    """Return a width per region: its area above the narrowest grows with multiply-adds.

    Where these are unknown for any region, nodes are counted instead.
    """
    known = [region.macs for region in regions if region.macs is not None]
    amounts = known if len(known) == len(regions) else [len(region.nodes) for region in regions]
    most = max(amounts, default=0) or 1
    return [round(NARROW + (WIDEST - NARROW) * sqrt(amount / most)) for amount in amounts]


def split_evenly(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Return places in rows no longer than ``limit``: the fewest rows, as equal as order allows."""
    fewest = len(list(_filled(lengths, limit)))
    even = sum(lengths) / max(fewest, 1)
    for tried in range(round(even), limit, 8):
        if len(rows := list(_filled(lengths, tried))) == fewest:
            return rows
    return list(_filled(lengths, limit))


def _filled(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Yield rows, each filled until the next would not fit; a row holds one at least."""
    row: list[int] = []
    for place in range(len(lengths)):
        if row and sum(lengths[at] for at in row) + lengths[place] > limit:
            yield row
            row = []
        row.append(place)
    if row:
        yield row
