# SPDX-License-Identifier: Apache-2.0
"""The grid of an attention map: the best of its candidates, by the error of the product."""

import numpy as np
import pytest

from qhyvit_onnx.grid import grid_for
from qhyvit_onnx.kernels.evidence import ProductEvidence
from qhyvit_onnx.kernels.product_search import LEAST, left_grid


def evidence(seed=0, sharp=3.0, tokens=24):
    """Return what a product reads: softmax maps, values, and what errors cost."""
    rng = np.random.default_rng(seed)
    scores = np.exp(sharp * rng.standard_normal((4, tokens, tokens)))
    left = (scores / scores.sum(axis=2, keepdims=True)).astype(np.float32)
    right = rng.standard_normal((4, tokens, 8)).astype(np.float32)
    gains = rng.uniform(0.1, 2.0, (4, tokens, 8)).astype(np.float32)
    return ProductEvidence(left, right, gains, np.arange(4))


def cost(grid, right, seen):
    want = seen.left.astype(np.float64) @ seen.right
    got = grid.fake(seen.left).astype(np.float64) @ right.fake(seen.right)
    return float((seen.gains * np.square(got - want)).sum())


RIGHT = grid_for(-3.0, 3.0)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("sharp", [0.5, 3.0])
def test_it_is_the_best_of_all_clip_points(bits, sharp):
    seen = evidence(sharp=sharp)
    found = left_grid(seen, RIGHT, bits=bits, candidates=60)
    peak = float(seen.left.max())
    points = np.geomspace(peak, peak * LEAST, 60)
    brute = [cost(grid_for(0.0, float(point), bits=bits), RIGHT, seen) for point in points]
    assert (found.zero_point, found.bits) == (0, bits)
    # sums in another precision: two candidates may be as good as each other
    assert cost(found, RIGHT, seen) == pytest.approx(min(brute), rel=1e-4)


def test_flat_maps_at_few_bits_are_far_better_than_on_the_kernels_grid():
    # most of what a flat map of 24 tokens holds is near 1/24: below half a step of 1/16
    seen = evidence(sharp=0.5)
    fixed = cost(grid_for(0.0, 15 / 16, bits=4), RIGHT, seen)
    assert cost(left_grid(seen, RIGHT, bits=4, candidates=60), RIGHT, seen) < 0.1 * fixed


def test_errors_count_where_they_cost():
    # only rows whose map is flat count: the grid may clip the peaks of the others
    seen = evidence(sharp=0.3)
    seen.left[:, 0] = np.eye(24, dtype=np.float32)[0]
    seen.gains[:, 0] = 0.0
    found = left_grid(seen, RIGHT, bits=4, candidates=60)
    assert found.high < 0.5 * float(seen.left.max())
