# SPDX-License-Identifier: Apache-2.0
"""Windows that slide over the spatial axes of a tensor whose channels lie last."""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Window(NamedTuple):
    """What one output position looks at. Every tuple has one entry a spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    """Positions added before and after."""
    ceil: bool = False
    """Whether a last window may hang over the end of the padded input."""

    def reach(self) -> tuple[int, ...]:
        """Return the distance from the first to the last position of a window, plus one."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def out(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Return how many windows fit along each axis of an input of size ``spatial``."""
        return tuple(map(self._count, spatial, self.reach(), self.strides, self.pads))

    def _count(self, size: int, reach: int, stride: int, pads: tuple[int, int]) -> int:
        room = size + sum(pads) - reach
        if not self.ceil:
            return room // stride + 1
        count = -(-room // stride) + 1
        return count - int((count - 1) * stride >= size + pads[0])  # would start in the padding


def taps(
    x: NDArray[Any], window: Window, fill: float
) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
    """Yield, for every position of a window, its index and what all windows see there.

    Shapes:
        x (N, *spatial, C); what is seen (N, *out, C), ``fill`` where a window is outside of x.
    """
    out = window.out(x.shape[1:-1])
    ends = [(n - 1) * s + r for n, s, r in zip(out, window.strides, window.reach(), strict=True)]
    pads = [
        (before, max(end - before - size, 0))
        for (before, _), end, size in zip(window.pads, ends, x.shape[1:-1], strict=True)
    ]
    padded = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    for index in product(*map(range, window.kernel)):
        starts = [i * d for i, d in zip(index, window.dilations, strict=True)]
        spans = [
            slice(start, start + (n - 1) * s + 1, s)
            for start, n, s in zip(starts, out, window.strides, strict=True)
        ]
        yield index, padded[(slice(None), *spans)]


def same_pads(
    spatial: tuple[int, ...], window: Window, *, extra_before: bool
) -> tuple[tuple[int, int], ...]:
    """Return the pads that give one output a stride; an odd one goes before or after.

    Source:
        ONNX Conv, ``auto_pad`` SAME_LOWER and SAME_UPPER.
    """
    totals = [
        max((-(-size // stride) - 1) * stride + reach - size, 0)
        for size, stride, reach in zip(spatial, window.strides, window.reach(), strict=True)
    ]
    return tuple(
        (total - total // 2, total // 2) if extra_before else (total // 2, total - total // 2)
        for total in totals
    )
