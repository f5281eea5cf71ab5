# SPDX-License-Identifier: Apache-2.0
"""Iterables and calibration readers as samples: walked again where they can be, else kept."""

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any, TypeAlias

from qhyvit_onnx.data.arrays import Table, fingerprint, make_table, notes_on
from qhyvit_onnx.data.feeds import Origin, Raw, Request
from qhyvit_onnx.data.input_spec import Array
from qhyvit_onnx.errors import CompileError, DataError

Row: TypeAlias = tuple[Table, int, str]
"""One sample: the item it is in, its row there, and its name in messages."""
Restart: TypeAlias = Callable[[], Iterator[Any]]


def read_stream(source: Any, request: Request) -> Raw:  # noqa: ANN401 - any iterable
    """Return the first samples of ``source``, read once here to count and hash them.

    What can be walked twice (not its own iterator, or a reader with ``rewind()``) is walked
    anew each time; anything else is read once and its samples are kept.
    """
    restart = _restart(source)
    digests, kept, recipe = list[bytes](), list[Row](), ""
    for row in _rows(_items(source), request, request.samples):
        table, index, _ = row
        digests.append(table.digest(index))
        recipe = recipe or table.recipe
        if restart is None:
            kept.append(row)
    taken = len(digests)
    if taken == 0:
        raise DataError("the calibration iterable gave no samples")
    origin = Origin(
        taken=taken,
        available=taken,
        sha256=fingerprint(digests),
        recipe=recipe,
        notes=notes_on(recipe, request),
    )

    def walk() -> Iterator[tuple[str, Mapping[str, Array]]]:
        rows = iter(kept) if restart is None else _rows(restart(), request, taken)
        return ((where, table.feed(index, where)) for table, index, where in rows)

    return Raw(walk, origin)


def _restart(source: Any) -> Restart | None:  # noqa: ANN401 - any iterable
    """Return what starts another walk, None when ``source`` can be walked once only."""
    if hasattr(source, "get_next"):
        if not callable(getattr(source, "rewind", None)):
            return None

        def rewound() -> Iterator[Any]:
            source.rewind()
            return _items(source)

        return rewound
    try:
        once = iter(source) is source
    except TypeError as error:
        raise DataError(
            f"calibration data of type {type(source).__name__} cannot be read",
            hint="give a path, an iterable of {name: array}, or a CalibrationDataReader",
        ) from error
    return None if once else lambda: _items(source)


def _items(source: Any) -> Iterator[Any]:  # noqa: ANN401 - any iterable
    """Yield what ``source`` gives; its own exceptions become DataError naming the item."""
    walk = _pulled(source) if hasattr(source, "get_next") else iter(source)
    for index in count():
        try:
            item = next(walk)
        except StopIteration:
            return
        except CompileError:
            raise
        except Exception as error:
            raise DataError(
                f"the calibration iterable failed at item {index}: {type(error).__name__}: {error}"
            ) from error
        yield item


def _pulled(source: Any) -> Iterator[Any]:  # noqa: ANN401 - any reader
    while (item := source.get_next()) is not None:
        yield item


def _rows(items: Iterator[Any], request: Request, limit: int | None) -> Iterator[Row]:
    """Yield single samples: an item that holds several is split."""
    taken = 0
    for number, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise DataError(
                f"item {number} of the calibration data is a {type(item).__name__}",
                hint="every item must be a {name: array} dict",
            )
        where = f"item {number}"
        table = make_table(item, request, where)
        for index in range(table.rows):
            yield table, index, f"{where}, row {index}" if table.rows > 1 else where
            taken += 1
            if taken == limit:
                return
