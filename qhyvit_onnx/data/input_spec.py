# SPDX-License-Identifier: Apache-2.0
"""What an input of a model wants, and whether an array meets it. Needs numpy only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.errors import ConfigError, DataError

Array: TypeAlias = NDArray[Any]
FLOAT32: np.dtype[Any] = np.dtype(np.float32)
Feed: TypeAlias = dict[str, Array]
"""One call of the model: an array for every input name."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One model input. ``shape`` holds None where the dimension is free; axis 0 is the batch."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any] = FLOAT32

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __str__(self) -> str:
        """Return ``name dtype [1, 3, ?, ?]``."""
        return f"{self.name} {self.dtype} {show_shape(self.shape)}"


def show_shape(shape: Sequence[int | None]) -> str:
    """Return ``[1, 3, ?, ?]``."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def parse_input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Return (name, dims) of ``name:1,3,224,224``; ``x`` may stand for the comma."""
    name, colon, dims = text.rpartition(":")
    try:
        shape = tuple(int(dim) for dim in dims.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not (name and colon and shape):
        raise ConfigError(
            f"--input-shape {text!r} is not understood", hint="write --input-shape name:1,3,224,224"
        )
    return name, shape


def resolve_shapes(
    inputs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[InputSpec, ...]:
    """Return ``inputs`` with their free dims taken from ``shapes``.

    Error:
        ConfigError for an unknown name, a wrong rank, a dim below 1 or against the model.
    """
    known = {spec.name for spec in inputs}
    if unknown := sorted(set(shapes) - known):
        raise ConfigError(
            f"--input-shape names {unknown[0]!r}, which is no input of the model",
            hint=f"inputs are {', '.join(sorted(known))}",
        )
    return tuple(
        replace(spec, shape=_merged(spec, shapes[spec.name])) if spec.name in shapes else spec
        for spec in inputs
    )


def _merged(spec: InputSpec, given: tuple[int, ...]) -> tuple[int, ...]:
    problem = ""
    if len(given) != spec.rank:
        problem = f"has {len(given)} dims, the model wants {spec.rank}"
    elif min(given, default=1) < 1:
        problem = "has a dim below 1"
    elif any(want not in (None, dim) for want, dim in zip(spec.shape, given, strict=True)):
        problem = "contradicts a fixed dim of the model"
    if problem:
        raise ConfigError(
            f"--input-shape {spec.name}:{','.join(map(str, given))} {problem}",
            hint=f"the model declares {spec}",
        )
    return given


def batch_of(inputs: Sequence[InputSpec]) -> int:
    """Return how many samples one call takes: dim 0 of the first input of rank 2 or more."""
    dims = (spec.shape[0] for spec in inputs if spec.rank > 1)
    return next(dims, None) or 1


def is_batched(spec: InputSpec, batch: int) -> bool:
    """Tell whether axis 0 of ``spec`` counts samples."""
    return spec.rank > 0 and spec.shape[0] in (None, batch)


def single(spec: InputSpec, batch: int) -> InputSpec:
    """Return what one sample of ``spec`` looks like: axis 0 is 1 when it counts samples."""
    return replace(spec, shape=(1, *spec.shape[1:])) if is_batched(spec, batch) else spec


def check_names(names: Sequence[str], inputs: Sequence[InputSpec], where: str) -> None:
    """Raise DataError unless ``names`` are exactly the inputs."""
    wanted = [spec.name for spec in inputs]
    listing = f"the model's inputs are {', '.join(wanted) or 'none'}"
    if extra := sorted(set(map(str, names)) - set(wanted)):
        raise DataError(
            f"{where} gives {', '.join(extra)}, which is no input of the model", hint=listing
        )
    if missing := [name for name in wanted if name not in names]:
        raise DataError(f"{where} lacks input {', '.join(missing)}", hint=listing)


def conform(feed: Mapping[str, Any], inputs: Sequence[InputSpec], where: str) -> Feed:
    """Return ``feed`` in the dtypes of ``inputs``, C order; DataError when it does not fit."""
    check_names(list(feed), inputs, where)
    return {spec.name: _conform_one(np.asarray(feed[spec.name]), spec, where) for spec in inputs}


def _conform_one(array: Array, spec: InputSpec, where: str) -> Array:
    fits = array.ndim == spec.rank and all(
        want in (None, dim) for want, dim in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise DataError(
            f"{where}, input {spec.name}: expected shape {show_shape(spec.shape)}, "
            f"found {show_shape(array.shape)}",
            hint=_image_hint(array, spec),
        )
    if array.size == 0:
        raise DataError(
            f"{where}, input {spec.name}: holds no values, shape {show_shape(array.shape)}"
        )
    out = _cast(array, spec, where)
    if out.dtype.kind == "f" and not np.isfinite(out).all():
        raise DataError(
            f"{where}, input {spec.name}: expected finite {spec.dtype} values, found NaN or Inf"
        )
    return out


def _cast(array: Array, spec: InputSpec, where: str) -> Array:
    """Return ``array`` in the dtype of ``spec``; DataError when that is another kind of number."""
    family = {"i": "integer", "u": "integer", "f": "float", "b": "bool"}
    found, wanted = (family.get(dtype.kind, dtype.kind) for dtype in (array.dtype, spec.dtype))
    if found != wanted:
        raise DataError(
            f"{where}, input {spec.name}: expected {spec.dtype} values, found {array.dtype}",
            hint=_image_hint(array, spec) or f"convert it with .astype({spec.dtype.name!r})",
        )
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(array, dtype=spec.dtype).reshape(array.shape)
    if wanted == "integer" and not np.array_equal(out, array):
        raise DataError(f"{where}, input {spec.name}: {array.dtype} values do not fit {spec.dtype}")
    return out


def _image_hint(array: Array, spec: InputSpec) -> str:
    if array.dtype == np.uint8 and spec.dtype.kind == "f":
        return "give --preprocess to treat 8-bit arrays as images"
    return ""
