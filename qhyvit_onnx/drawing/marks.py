# SPDX-License-Identifier: Apache-2.0
"""Trouble spots: a number or letter on the region, and a line in the table that explains it."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from qhyvit_onnx.drawing.captions import shortened
from qhyvit_onnx.inspection import Observed, OneSided, Spread

MARKED = 10
"""Tensors marked of each kind."""
NAME = 62
"""Characters of a tensor's name that fit into its column."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One trouble spot."""

    name: str
    shape: str
    """``circle`` for spread, ``diamond`` for one-sided."""
    region: int | None
    cells: tuple[str, ...]
    """Its line in the table; the tensor comes last."""
    title: str


def spread_marks(seen: Observed | None) -> list[Mark]:
    """Return a mark for each of the widest tensors."""
    found = seen.spreads[:MARKED] if seen else ()
    return [_wide(item, str(number)) for number, item in enumerate(found, 1)]


def one_sided_marks(seen: Observed | None) -> list[Mark]:
    """Return a mark for each of the tensors that lose most levels to a range without zero."""
    found = seen.one_sided[:MARKED] if seen else ()
    return [_sided(item, letter) for item, letter in zip(found, ascii_uppercase, strict=False)]


def _wide(item: Spread, name: str) -> Mark:
    cells = (
        name,
        f"{item.before:.1f}",
        f"{item.after:.1f}",
        str(item.channels),
        _place(item.region),
        item.cure,
        shortened(item.tensor, NAME),
    )
    told = f"{name}: channel spread {item.before:.1f}, {item.after:.1f} after folding ({item.cure})"
    return Mark(name, "circle", item.region, cells, f"{told}\n{item.tensor}")


def _sided(item: OneSided, name: str) -> Mark:
    low, high = f"{item.low:.3g}", f"{item.high:.3g}"
    cells = (name, low, high, _place(item.region), item.cure, shortened(item.tensor, NAME))
    told = f"{name}: range {low} to {high} excludes zero ({item.cure})"
    return Mark(name, "diamond", item.region, cells, f"{told}\n{item.tensor}")


def _place(region: int | None) -> str:
    return "" if region is None else str(region + 1)


def marked_of(marks: Sequence[Mark], seen: int) -> str:
    """Return ``10 of 26``, or nothing where all are marked."""
    return f" ({len(marks)} of {seen})" if seen > len(marks) else ""
