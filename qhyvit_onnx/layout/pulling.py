# SPDX-License-Identifier: Apache-2.0
"""Arrays over a source tensor, seen from the output: only the axes that matter are worked out."""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.layout.digits import Affine, Digit, product
from qhyvit_onnx.layout.evaluation import Forward, needed_for, roots, split
from qhyvit_onnx.layout.form import Form
from qhyvit_onnx.symbolic.dims import Shape, is_number

LARGEST = 2**22
"""Elements of the largest array worked out."""


def pulled(form: Form, source: Shape, values: NDArray[Any], fill: Any) -> NDArray[Any] | None:  # noqa: ANN401
    """Return out[o] = values[source(o)], ``fill`` outside; see ``IndexMap.pull``."""
    _check(source, values.shape)
    varying = [axis for axis, size in enumerate(values.shape) if size > 1]
    asked = [form.coordinates[axis] for axis in varying]
    limits = [] if _all_equal(values, fill) else list(form.bounds)
    needed = {d for value in (*asked, *(b.value for b in limits)) for d in roots(form, value)}
    grid = _positions(form, needed)
    if grid is None or not all(_is_plain(form, v) for v in (*asked, *(b.value for b in limits))):
        return None
    shape = [1] * len(form.axes)
    for axis, digits in enumerate(form.axes):
        if not needed.isdisjoint(digits):
            shape[axis] = product(digits)
    if prod(shape) > LARGEST or not all(is_number(bound.size) for bound in limits):
        return None
    forward = Forward(form, grid, lambda table, index: np.take(table, index, mode="clip"))
    inside = np.ones(shape, bool)
    for bound in limits:
        number = forward.sum(bound.value)
        inside &= (number >= 0) & (number < bound.size)
    index: list[Any] = [0] * values.ndim
    for axis, value in zip(varying, asked, strict=True):
        index[axis] = np.clip(forward.sum(value), 0, values.shape[axis] - 1)  # outside: any will do
    seen = np.broadcast_to(values[tuple(index)], shape)
    return seen.copy() if inside.all() else np.where(inside, seen, fill)


def _check(source: Shape, shape: tuple[int, ...]) -> None:
    pairs = zip(shape, source, strict=False)
    if len(shape) != len(source) or not all(size in {1, dim} for size, dim in pairs):
        raise ValueError(f"values of shape {shape} do not fit a source of shape {source}")


def _all_equal(values: NDArray[Any], fill: Any) -> bool:  # noqa: ANN401
    return bool(values.size == 1 and values.reshape(-1)[0] == fill)


def _positions(form: Form, needed: set[Digit]) -> dict[Digit, NDArray[Any]] | None:
    """Return the digits of every axis with a needed one, as arrays over that axis."""
    found: dict[Digit, NDArray[Any]] = {}
    rank = len(form.axes)
    for axis, digits in enumerate(form.axes):
        if needed.isdisjoint(digits):
            continue
        size = product(digits)
        if not is_number(size) or size > LARGEST:
            return None
        along = [1] * rank
        along[axis] = size
        found.update(split(np.arange(size).reshape(along), digits))
    return found


def _is_plain(form: Form, value: Affine) -> bool:
    """Tell whether no free dim takes part in working out a sum."""
    items = needed_for(form, value)
    numbers = [part.size for item in items for part in item.parts]
    numbers += [n for item in items for n in (item.value.offset, *item.value.strides.values())]
    return all(map(is_number, numbers))
