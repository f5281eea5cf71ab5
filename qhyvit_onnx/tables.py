# SPDX-License-Identifier: Apache-2.0
"""The look of results on stdout: small tables for 80 to 100 columns, with or without colour."""

import sys
from collections.abc import Iterable, Sequence

import click
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDEST = 100
"""Columns used at most; also when stdout is no terminal, so that files and logs look the same."""


def stdout() -> Console:
    """Return the console of results; colours only on a terminal, and never with NO_COLOR."""
    width = min(Console().width, WIDEST) if sys.stdout.isatty() else WIDEST
    return Console(width=width, highlight=False, markup=False, emoji=False)


def table(*headers: str) -> Table:
    """Return an empty table; ``>`` ends the header of a column of numbers, ``!`` of short names."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        number, name = header.endswith(">"), header.endswith("!")
        made.add_column(
            header.rstrip(">!"),
            justify="right" if number else "left",
            no_wrap=number or name,
            overflow="fold",
        )
    return made


def filled(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table of ``rows``, each cell as text."""
    made = table(*headers)
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def labelled(rows: Iterable[tuple[str, object]]) -> Table:
    """Return a table without header: a bold word, and what there is to say under it."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    before = ""
    for label, text in rows:
        made.add_row(label if label != before else "", Text(str(text)))
        before = label
    return made


def beside(left: RenderableType, right: RenderableType) -> Table:
    """Return two blocks side by side, the right one taking what is left of the line."""
    grid = Table.grid(padding=(0, 4, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(left, right)
    return grid


def show(blocks: Iterable[RenderableType]) -> None:
    """Print blocks on stdout, a blank line between two; no line ends in spaces."""
    console = stdout()
    with console.capture() as captured:
        for index, block in enumerate(blocks):
            console.print(Padding(block, (int(index > 0), 0, 0, 0)))
    for line in captured.get().splitlines():
        click.echo(line.rstrip(), color=True)  # rich has decided about colour already


def megabytes(size: float) -> str:
    """Return ``1.70 MB``, 10^6 bytes a megabyte; small sizes in kB."""
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
