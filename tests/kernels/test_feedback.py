# SPDX-License-Identifier: Apache-2.0
"""Rounding with feedback: its cost is d^T G d, and it is lower than that of the nearest codes."""

import numpy as np
import pytest

from qhyvit_onnx.kernels.feedback import BLOCK, DAMPING, Feedback

LIMIT = 7


def problem(seed, groups=1, rows=6, width=12, spread=1.0):
    """Return a gram (groups, K, K) of correlated inputs, a weight (C, K) and scales (C,)."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(spread * rng.standard_normal(width))
    mixed = rng.standard_normal((groups, width, width)) * sizes
    x = np.matmul(rng.standard_normal((groups, 3 * width, width)), mixed)
    gram = np.matmul(x.transpose(0, 2, 1), x) / x.shape[1]
    weight = rng.standard_normal((groups * rows, width)).astype(np.float32)
    scale = (np.abs(weight).max(axis=1) / LIMIT).astype(np.float32)
    return gram.astype(np.float32), weight, scale


def damped(gram):
    """Return the gram whose costs are told."""
    mean = np.einsum("gkk->g", gram.astype(np.float64)) / gram.shape[1]
    added = np.where(mean > 0, DAMPING * mean, 1.0)
    return gram + added[:, None, None] * np.eye(gram.shape[1])


def cost(gram, weight, scale, codes):
    """Return d^T G d of every row, computed as it is written."""
    error = codes.astype(np.float64) * scale[:, None] - weight
    by_group = error.reshape(len(gram), -1, gram.shape[1])
    return np.einsum("gck,gkl,gcl->gc", by_group, damped(gram), by_group).reshape(-1)


def nearest(weight, scale):
    return np.clip(np.rint(weight / scale[:, None]), -LIMIT, LIMIT)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("width", [1, 9, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_the_cost_is_that_of_the_errors(groups, width):
    gram, weight, scale = problem(0, groups, width=width)
    scale = 1.1 * scale  # one column alone would have no error
    found = Feedback(gram).round(weight, scale, LIMIT)
    # float32 sums of up to 133 terms
    np.testing.assert_allclose(found.cost, cost(gram, weight, scale, found.codes), rtol=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_it_costs_less_than_the_nearest_codes(seed):
    gram, weight, scale = problem(seed, rows=40, width=30)
    found = Feedback(gram).round(weight, scale, LIMIT)
    plain = cost(gram, weight, scale, nearest(weight, scale))
    # not so for every single row: the choice is greedy
    assert found.cost.sum() < 0.7 * plain.sum()
    assert (found.cost < plain).mean() > 0.7


def test_it_comes_near_the_best_codes_there_are():
    gram, weight, scale = problem(3, rows=10, width=8)
    found = Feedback(gram).round(weight, scale, LIMIT)
    low = np.floor(weight / scale[:, None])
    best = np.full(len(weight), np.inf)
    for ups in np.ndindex(*(2,) * 8):
        codes = np.clip(low + ups, -LIMIT, LIMIT)
        best = np.minimum(best, cost(gram, weight, scale, codes))
    assert (found.cost >= best * (1 - 1e-4)).all()
    plain = cost(gram, weight, scale, nearest(weight, scale))
    assert found.cost.sum() - best.sum() < 0.3 * (plain.sum() - best.sum())


@pytest.mark.parametrize("shrunk", [1.0, 0.4])
def test_codes_are_floor_or_ceiling_within_the_limit(shrunk):
    gram, weight, scale = problem(1, groups=3, width=BLOCK + 9)
    found = Feedback(gram).round(weight, shrunk * scale, LIMIT)
    wanted = weight / (shrunk * scale)[:, None]
    assert (found.codes == np.rint(found.codes)).all()
    assert np.abs(found.codes).max() == LIMIT
    low, high = (np.clip(end(wanted), -LIMIT, LIMIT) for end in (np.floor, np.ceil))
    assert ((found.codes == low) | (found.codes == high)).all()
    assert (found.codes != np.clip(np.rint(wanted), -LIMIT, LIMIT)).any()


def test_without_correlation_it_is_the_nearest():
    _, weight, scale = problem(2, groups=2, rows=5, width=20)
    energy = np.random.default_rng(0).uniform(0.1, 9.0, (2, 20)).astype(np.float32)
    gram = energy[:, :, None] * np.eye(20, dtype=np.float32)
    found = Feedback(gram).round(weight, scale, LIMIT)
    np.testing.assert_array_equal(found.codes, nearest(weight, scale))


def test_what_calibration_never_saw_is_rounded_to_the_nearest():
    _, weight, scale = problem(2, groups=2)
    found = Feedback(np.zeros((2, 12, 12), np.float32)).round(weight, scale, LIMIT)
    np.testing.assert_array_equal(found.codes, nearest(weight, scale))


def test_groups_are_apart():
    gram, weight, scale = problem(5, groups=3)
    together = Feedback(gram).round(weight, scale, LIMIT)
    rows = len(weight) // 3
    for group in range(3):
        mine = slice(group * rows, (group + 1) * rows)
        alone = Feedback(gram[group : group + 1]).round(weight[mine], scale[mine], LIMIT)
        np.testing.assert_array_equal(together.codes[mine], alone.codes)


def test_a_gram_of_few_places_is_factored():
    # two places for thirty columns: the gram alone has no inverse
    x = np.random.default_rng(4).standard_normal((2, 30)).astype(np.float32)
    _, weight, scale = problem(4, width=30)
    found = Feedback((x.T @ x / 2)[None]).round(weight, scale, LIMIT)
    moved = (found.codes * scale[:, None] - weight) @ x.T
    plain = (nearest(weight, scale) * scale[:, None] - weight) @ x.T
    assert np.square(moved).sum() < 0.1 * np.square(plain).sum()
