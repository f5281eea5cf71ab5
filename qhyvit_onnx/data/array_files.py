# SPDX-License-Identifier: Apache-2.0
"""``.npy`` and ``.npz`` files as samples, one file or a folder of them."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from qhyvit_onnx.data.arrays import LABEL_KEYS, Table, fingerprint, make_table, notes_on
from qhyvit_onnx.data.feeds import Kind, Origin, Raw, Request
from qhyvit_onnx.data.input_spec import Array
from qhyvit_onnx.errors import DataError

SUFFIXES = frozenset({".npy", ".npz"})
BOMB_BYTES, BOMB_RATIO = 256 << 20, 500
"""A zip member above both is refused: real samples do not shrink five hundred times."""


def read_table(table: Table, request: Request, *, kind: Kind, path: str = "") -> Raw:
    """Return the samples of one table."""
    picks = request.picks(table.rows)

    def walk() -> Iterator[tuple[str, Mapping[str, Array]]]:
        for pick in picks:
            where = f"{table.where}, sample {pick}"
            yield where, table.feed(pick, where)

    origin = Origin(
        kind=kind,
        path=path,
        taken=len(picks),
        available=table.rows,
        seed=request.seed,
        sha256=fingerprint(map(table.digest, picks)),
        recipe=table.recipe,
        notes=notes_on(table.recipe, request),
    )
    labels = tuple(table.labels[pick] for pick in picks) if table.labels else None
    return Raw(walk, origin, labels)


def read_array_folder(folder: Path, paths: Sequence[Path], request: Request) -> Raw:
    """Return the samples of array files, each holding one or more; one file is open at a time."""
    counts = [load_table(path, request).rows for path in paths]
    rows = [(path, row) for path, count in zip(paths, counts, strict=True) for row in range(count)]
    chosen = [rows[pick] for pick in request.picks(len(rows))]
    digests, labels, recipe = list[bytes](), list[int](), ""
    for table, row in _opened(chosen, request):
        digests.append(table.digest(row))
        labels.extend(table.labels[row : row + 1] if table.labels else ())
        recipe = recipe or table.recipe

    def walk() -> Iterator[tuple[str, Mapping[str, Array]]]:
        for table, row in _opened(chosen, request):
            where = table.where + (f", sample {row}" if table.rows > 1 else "")
            yield where, table.feed(row, where)

    origin = Origin(
        kind=Kind.ARRAYS,
        path=str(folder),
        taken=len(chosen),
        available=len(rows),
        seed=request.seed,
        sha256=fingerprint(digests),
        recipe=recipe,
        notes=notes_on(recipe, request),
    )
    return Raw(walk, origin, tuple(labels) if len(labels) == len(chosen) else None)


def _opened(rows: Sequence[tuple[Path, int]], request: Request) -> Iterator[tuple[Table, int]]:
    """Yield (table, row); rows of one file that follow each other share one load."""
    for path, group in groupby(rows, key=itemgetter(0)):
        table = load_table(path, request)
        for _, row in group:
            yield table, row


def load_table(path: Path, request: Request) -> Table:
    """Return the samples of a ``.npy`` (memory-mapped) or ``.npz`` file.

    Error:
        DataError naming the file when it is damaged, holds Python objects, or is a zip bomb.
    """
    try:
        members = _members(path)
    except DataError:
        raise
    except Exception as error:  # a damaged file makes the parsers raise almost anything
        raise DataError(
            f"cannot read arrays of {path}: {error or type(error).__name__}",
            hint="write it with numpy.save or numpy.savez, without Python objects",
        ) from error
    return make_table(_named(members, request), request, str(path))


def _named(members: dict[str, Array], request: Request) -> dict[str, Array]:
    """Return ``members`` with an only array under the name of an only input, whatever its key."""
    names = [spec.name for spec in request.inputs]
    samples = [key for key in members if key in names or key not in LABEL_KEYS]
    if len(samples) == len(names) == 1:
        members[names[0]] = members.pop(samples[0])
    return members


def _members(path: Path) -> dict[str, Array]:
    if path.suffix.lower() == ".npy":
        return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False)}
    _refuse_bomb(path)
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _refuse_bomb(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.file_size > max(BOMB_BYTES, BOMB_RATIO * info.compress_size):
                raise DataError(
                    f"{path}: member {info.filename} unpacks to {info.file_size >> 20} MiB",
                    hint="write it with numpy.savez, uncompressed",
                )
