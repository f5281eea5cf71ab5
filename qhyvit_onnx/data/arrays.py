# SPDX-License-Identifier: Apache-2.0
"""Arrays as samples: which axis counts them, and one row at a time as the model reads it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from qhyvit_onnx.data.feeds import Request
from qhyvit_onnx.data.image_input import image_input
from qhyvit_onnx.data.input_spec import (
    Array,
    InputSpec,
    batch_of,
    check_names,
    is_batched,
    show_shape,
)
from qhyvit_onnx.errors import DataError

LABEL_KEYS = ("labels", "label", "targets", "y")
"""Keys of class indices in an ``.npz``, unless an input has that name."""


@dataclass(frozen=True, slots=True)
class Column:
    """The samples of one input: ``row`` gives one as stored, ``make`` turns it into the input."""

    name: str
    rows: int
    row: Callable[[int], Array]
    make: Callable[[Array, str], Array]
    recipe: str = ""
    """How pictures became inputs; empty when the rows are fed as they are."""


@dataclass(frozen=True, slots=True)
class Table:
    """Arrays of the same number of samples; a column of one row serves every sample."""

    columns: tuple[Column, ...]
    rows: int
    where: str
    labels: tuple[int, ...] | None = None

    @property
    def recipe(self) -> str:
        """Return how 8-bit arrays became inputs, empty when none did."""
        return "; ".join(column.recipe for column in self.columns if column.recipe)

    def feed(self, index: int, where: str) -> dict[str, Array]:
        """Return one sample, unchecked."""
        return {c.name: c.make(c.row(min(index, c.rows - 1)), where) for c in self.columns}

    def digest(self, index: int) -> bytes:
        """Return the SHA-256 of one sample as stored: names, types, shapes and bytes."""
        hasher = sha256()
        for column in self.columns:
            array = column.row(min(index, column.rows - 1))
            hasher.update(f"{column.name} {array.dtype.str} {array.shape}".encode())
            hasher.update(array.tobytes())
        return hasher.digest()


def fingerprint(digests: Iterable[bytes]) -> str:
    """Return one SHA-256 for the digests of all samples."""
    return sha256(b"".join(digests)).hexdigest()


def notes_on(recipe: str, request: Request) -> tuple[str, ...]:
    """Say so when a recipe was asked for and no array was a picture."""
    if recipe or request.preprocess is None:
        return ()
    return ("arrays are fed as they are: --preprocess is for images and 8-bit arrays",)


def make_table(arrays: Mapping[str, Any], request: Request, where: str) -> Table:
    """Return ``arrays`` (input name to samples, perhaps with labels) as a table."""
    values = {str(name): np.asarray(array) for name, array in arrays.items()}
    names = {spec.name for spec in request.inputs}
    labels = next((values.pop(k) for k in LABEL_KEYS if k in values and k not in names), None)
    check_names(list(values), request.inputs, where)
    batch = batch_of(request.inputs)
    columns = tuple(_column(values[s.name], s, batch, request, where) for s in request.inputs)
    rows = max((column.rows for column in columns), default=0)
    if wrong := [column for column in columns if column.rows not in (1, rows)]:
        raise DataError(
            f"{where} gives {wrong[0].rows} samples of input {wrong[0].name} and {rows} of another"
        )
    if rows == 0:
        raise DataError(f"{where} holds no samples")
    return Table(columns, rows, where, _labels(labels, rows, where))


def _labels(labels: Array | None, rows: int, where: str) -> tuple[int, ...] | None:
    if labels is None:
        return None
    labels = labels.reshape(-1)
    if labels.size != rows or labels.dtype.kind not in "iu":
        raise DataError(
            f"{where}: expected {rows} integer labels, found {labels.dtype} "
            f"{show_shape(labels.shape)}"
        )
    return tuple(int(label) for label in labels)


def _column(array: Array, spec: InputSpec, batch: int, request: Request, where: str) -> Column:
    if request.preprocess is not None and array.dtype == np.uint8 and spec.rank == 4:
        image = image_input(spec, request.preprocess)
        pixels = _pixels(array, spec, where)
        return Column(spec.name, len(pixels), pixels.__getitem__, image.read, image.describe())
    rows, row = _rows(array, spec, batch, where)
    return Column(spec.name, rows, row, lambda stored, _where: stored)


def _rows(
    array: Array, spec: InputSpec, batch: int, where: str
) -> tuple[int, Callable[[int], Array]]:
    """Return how many samples ``array`` holds, and how to get one with the rank of ``spec``."""
    batched, extra = is_batched(spec, batch), array.ndim - spec.rank
    if not batched and extra == 0:
        return 1, lambda _index: array
    if not batched and extra == 1:
        return len(array), lambda index: np.asarray(array[index])
    if batched and extra == -1:
        array = array[None]
    elif batched and extra == 1 and (spec.shape[0] is None or array.shape[1] in (1, batch)):
        array = array.reshape(-1, *array.shape[2:])  # (N, B, ...) -> (N * B, ...)
    elif not (batched and extra == 0):
        raise DataError(
            f"{where}, input {spec.name}: expected {show_shape((None, *spec.shape[1:]))} "
            f"for N samples, found {show_shape(array.shape)}"
        )
    return len(array), lambda index: array[index : index + 1]


def _pixels(array: Array, spec: InputSpec, where: str) -> Array:
    """Return 8-bit pictures as (N, H, W, C) or (N, H, W), whichever way they were stored."""
    if array.ndim == 3:
        one = array.shape[-1] in (1, 3, 4) or array.shape[0] in (1, 3)
        if not one:
            return array  # (N, H, W): N gray pictures
        array = array[None]
    if array.ndim == 4 and array.shape[-1] in (1, 3, 4):
        return array
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return np.moveaxis(array, 1, -1)  # (N, C, H, W) -> (N, H, W, C)
    raise DataError(
        f"{where}, input {spec.name}: expected 8-bit pictures [N, H, W, 3], "
        f"found {show_shape(array.shape)}"
    )
