# SPDX-License-Identifier: Apache-2.0
"""Scales and codes of a weight, chosen together by what their errors do to the layer's output."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.kernels.evidence import LayerEvidence
from qhyvit_onnx.kernels.feedback import Feedback
from qhyvit_onnx.kernels.scales import NEGLIGIBLE

Floats = NDArray[np.float32]

COARSE, FINE = 8, 3
"""Clip points tried over the whole range, then on either side of the best."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A weight on a grid.

    Shapes:
        scale (S,), S scales for C rows; codes (C, K), whole numbers.
    """

    scale: Floats
    codes: Floats


def search_fit(
    weight: Floats,
    feedback: Feedback,
    owners: NDArray[np.int64],
    *,
    limit: int,
    lowest: float,
    legal: Callable[[Floats], Floats],
) -> Fit:
    """Return scales and codes with the least cost; every candidate is scored as it would be used.

    Coarse to fine: the cost over the clip point has one broad valley, and the resolution at the
    end is that of about 50 points a range.

    Shapes:
        weight (C, K); owners (C,): index of the scale that a row uses.

    Units:
        ``lowest``: the smallest clip point, as a fraction of the peak; ``legal`` raises scales to
        what kernels can take.
    """
    peak = np.zeros(int(owners.max()) + 1, np.float32)
    np.maximum.at(peak, owners, np.abs(weight).max(axis=1))
    peak[peak <= NEGLIGIBLE] = 0.0
    best = _Best(weight, feedback, owners, limit=limit, legal=legal, base=peak / np.float32(limit))
    stride = (1.0 - lowest) / (COARSE - 1)
    for fraction in np.linspace(1.0, lowest, COARSE):
        best.offer(np.full(peak.shape, fraction, np.float32))
    center = best.fraction.copy()
    for step in range(1, FINE + 1):
        for side in (-1, 1):
            moved = center + np.float32(side * step * stride / (FINE + 1))
            best.offer(np.clip(moved, lowest, 1.0))
    return Fit(best.scale, best.codes)


class _Best:
    """The best candidate so far, scale by scale."""

    def __init__(
        self,
        weight: Floats,
        feedback: Feedback,
        owners: NDArray[np.int64],
        *,
        limit: int,
        legal: Callable[[Floats], Floats],
        base: Floats,
    ) -> None:
        self._weight, self._feedback, self._owners = weight, feedback, owners
        self._limit, self._legal, self._base = limit, legal, base
        self._cost = np.full(base.shape, np.inf)
        self.fraction = np.ones_like(base)
        self.scale = base
        self.codes = np.zeros_like(weight)

    def offer(self, fraction: Floats) -> None:
        scale = self._legal(fraction * self._base)
        found = self._feedback.round(self._weight, scale[self._owners], self._limit)
        cost = np.bincount(self._owners, found.cost, minlength=len(scale))
        better = cost < self._cost
        self._cost = np.where(better, cost, self._cost)
        self.fraction = np.where(better, fraction, self.fraction)
        self.scale = np.where(better, scale, self.scale)
        self.codes = np.where(better[self._owners, None], found.codes, self.codes)


def cost_on_rows(error: Floats, evidence: LayerEvidence) -> NDArray[np.float64]:
    """Return what an error of the weight costs on the places drawn from the layer, (C,).

    Shapes:
        error (C, K), group by group.

    Source:
        the diagonal Fisher weighs each output of each place by itself; the gram only has its mean
        over the outputs of a place.
    """
    groups, width = evidence.gram.shape[:2]
    columns = error.reshape(groups, -1, width).transpose(0, 2, 1)
    moved = np.matmul(evidence.rows.transpose(1, 0, 2), columns)  # (groups, P, C / groups)
    spread = moved.transpose(1, 0, 2).reshape(len(evidence.rows), -1)
    cost: NDArray[np.float64] = np.einsum(
        "pc,pc->c", evidence.gains, np.square(spread), dtype=np.float64
    )
    return cost
