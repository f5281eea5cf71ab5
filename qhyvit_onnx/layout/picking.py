# SPDX-License-Identifier: Apache-2.0
"""Slice, Split and Gather as ranges of an axis, or as a table where indices make no range."""

from collections.abc import Iterator, Sequence
from math import prod

from qhyvit_onnx.layout.site import Path, Refusal, Site
from qhyvit_onnx.layout.steps import Pick, Regroup, Step, Take
from qhyvit_onnx.symbolic.dims import Dim, is_number, settled
from qhyvit_onnx.symbolic.ranges import first_index


def slice_(site: Site) -> Iterator[Path]:
    """Slice: a range of each axis it names. Lengths are those of the output shape."""
    source, target = site.source(), site.target()
    starts = site.needed(1, "starts")
    axes = site.dims(3, "axes")
    axes = list(range(len(starts))) if axes is None else axes
    strides = site.dims(4, "steps") or [1] * len(starts)
    steps: list[Step] = []
    for given, start, step in zip(axes, starts, strides, strict=True):
        if not is_number(step):
            raise Refusal("step is a free dim")
        axis = site.counted(given)
        first = first_index(start, step, source[axis])
        if first is None:
            raise Refusal("where it starts depends on free dims")
        steps.append(Take(axis, first, int(step), target[axis]))
    yield 0, 0, tuple(steps)


def split(site: Site) -> Iterator[Path]:
    """Split: consecutive ranges of one axis."""
    axis = site.axis()
    sizes = site.dims(1, "split")
    if sizes is None:
        sizes = [site.target(index)[axis] for index in range(len(site.node.outputs))]
    start: Dim = 0
    for index, size in enumerate(sizes):
        yield 0, index, (Take(axis, start, 1, size),)
        start = settled(start + size)


def gather(site: Site) -> Iterator[Path]:
    """Gather by constant indices: one index fixes its axis, a progression is a range."""
    axis, source = site.axis(), site.source()
    indices = [_counted(item, source[axis]) for item in site.needed(1, "indices")]
    shape = site.known.shapes[site.node.inputs[1].name]
    if prod(shape) != len(indices):
        raise Refusal("shape of indices unknown")
    picked = (*source[:axis], len(indices), *source[axis + 1 :])
    whole = (*source[:axis], *shape, *source[axis + 1 :])
    steps: tuple[Step, ...] = (_range_or_table(axis, indices),)
    yield 0, 0, steps if whole == picked else (*steps, Regroup(whole))


def _counted(index: Dim, size: Dim) -> Dim:
    """Return an index counted from the front."""
    if not is_number(index):
        raise Refusal("indices depend on free dims")
    return settled(index + size) if index < 0 else index


def _range_or_table(axis: int, indices: Sequence[Dim]) -> Step:
    step = settled(indices[1] - indices[0]) if len(indices) > 1 else 1
    expected = (settled(indices[0] + step * k) for k in range(len(indices)))
    if (
        is_number(step)
        and step != 0
        and all(a == b for a, b in zip(expected, indices, strict=True))
    ):
        return Take(axis, indices[0], step, len(indices))
    if not all(map(is_number, indices)):
        raise Refusal("indices from both ends of an axis of free size")
    return Pick(axis, tuple(indices))
