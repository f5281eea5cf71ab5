# SPDX-License-Identifier: Apache-2.0
"""Grids of what a product of activations reads, by the error of its output."""

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.grid import Grid, grid_for
from qhyvit_onnx.kernels.evidence import ProductEvidence

LEAST = 1 / 64
"""Smallest clip point tried, as a fraction of the peak: most of what an attention map holds may be
far below the largest value."""


def left_grid(evidence: ProductEvidence, right: Grid, *, bits: int, candidates: int) -> Grid:
    """Return the grid from zero for the left operand, which has no values below zero.

    Clip points are spaced evenly in their logarithm. What the product loses by the rounding of
    its right operand, on its grid, is part of the error: the two may cancel.
    """
    want = np.matmul(evidence.left, evidence.right)
    rounded = right.fake(evidence.right)
    peak = float(evidence.left.max())
    grids = [
        grid_for(0.0, float(point), bits=bits)
        for point in np.geomspace(peak, peak * LEAST, candidates)
    ]
    costs = [_cost(np.matmul(grid.fake(evidence.left), rounded) - want, evidence) for grid in grids]
    return grids[int(np.argmin(costs))]


def _cost(error: NDArray[np.float32], evidence: ProductEvidence) -> float:
    return float(np.einsum("smn,smn->", evidence.gains, np.square(error), dtype=np.float64))
