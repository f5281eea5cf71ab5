# SPDX-License-Identifier: Apache-2.0
"""Pad and Concat: an axis gets longer, and what was there sits somewhere in it."""

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from qhyvit_onnx.layout.site import Path, Refusal, Site
from qhyvit_onnx.layout.steps import Pick, Step, Take, Widen
from qhyvit_onnx.symbolic.dims import Dim, is_negative, is_number, not_negative, settled

_MODES: Mapping[str, Literal["reflect", "edge", "wrap"]] = {
    "reflect": "reflect",
    "edge": "edge",
    "wrap": "wrap",
}
"""ONNX modes that repeat elements of the source, by their numpy names."""


def pad(site: Site) -> Iterator[Path]:
    """Pad: a constant around the source, or elements of the source again. Negative pads crop."""
    pads = site.needed(1, "pads")
    axes = site.dims(3, "axes")
    axes = list(range(len(site.source()))) if axes is None else axes
    mode = site.attr("mode", "constant")
    steps: list[Step] = []
    for given, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        axis = site.counted(given)
        size = site.source()[axis]
        if mode == "constant":
            steps.extend(_widened(site, axis, before, after))
        elif before != 0 or after != 0:
            steps.append(_repeated(axis, size, before, after, mode))
    yield 0, 0, tuple(steps)


def _widened(site: Site, axis: int, before: Dim, after: Dim) -> Iterator[Step]:
    cut = [_amount(settled(-before)), _amount(settled(-after))]
    grown = [_amount(before), _amount(after)]
    if any(item != 0 for item in cut):
        yield Take(axis, cut[0], 1, settled(site.source()[axis] - cut[0] - cut[1]))
    if any(item != 0 for item in grown):
        yield Widen(axis, grown[0], site.target()[axis])


def _amount(value: Dim) -> Dim:
    """Return ``value`` where it is positive, else 0."""
    if not_negative(value):
        return value
    if is_negative(value) or not_negative(-value):
        return 0
    raise Refusal("whether it pads or crops depends on free dims")


def _repeated(axis: int, size: Dim, before: Dim, after: Dim, mode: str) -> Step:
    if not all(map(is_number, (size, before, after))):
        raise Refusal(f"mode {mode} along an axis of free size")
    if mode not in _MODES or before < 0 or after < 0:
        raise Refusal(f"mode {mode} with pads {before}, {after}")
    table = np.pad(np.arange(size), (before, after), mode=_MODES[mode])
    return Pick(axis, tuple(map(int, table)))


def concat(site: Site) -> Iterator[Path]:
    """Concat: each input is a range of the output axis, and the others lie outside."""
    axis = site.axis()
    sizes = [site.source(index)[axis] for index in range(len(site.node.inputs))]
    start: Dim = 0
    for index, size in enumerate(sizes):
        yield index, 0, (Widen(axis, start, site.target()[axis]),)
        start = settled(start + size)
