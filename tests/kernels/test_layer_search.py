# SPDX-License-Identifier: Apache-2.0
"""Searches over layer outputs against loops that do the same, one number at a time."""

import numpy as np
import pytest

from qhyvit_onnx.kernels.evidence import LayerEvidence, ProductEvidence
from qhyvit_onnx.kernels.layer_search import (
    Scene,
    column_scales,
    least,
    rounded,
    rounded_weight,
)
from qhyvit_onnx.kernels.percentiles import histogram_ends

RNG = np.random.default_rng(11)


def drawn(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def layer_scene(groups=2, places=16, width=5, columns=3):
    """Return a scene of a grouped layer, and what it was made of."""
    rows, right = drawn(places, groups, width), drawn(groups, width, columns)
    gains, bias = np.square(drawn(places, groups * columns)), drawn(groups * columns)
    evidence = LayerEvidence(np.zeros((groups, width, width), np.float32), rows, gains)
    return Scene.of_layer(evidence, right, bias), rows, right, gains, bias


def test_a_layer_is_what_it_computes():
    scene, rows, right, gains, bias = layer_scene()
    for place in range(16):
        for channel in range(6):
            group, column = divmod(channel, 3)
            want = rows[place, group] @ right[group, :, column]
            assert scene.target[group, place, column] == pytest.approx(want, rel=1e-5)
            assert scene.gains[group, place, column] == gains[place, channel]
            assert scene.offset[group, 0, column] == bias[channel]


def test_costs_are_weighted_squares_by_column():
    scene, *_ = layer_scene()
    left, right = scene.left + 0.1, scene.right * 1.1
    error = left @ right - scene.left @ scene.right
    want = (scene.gains * error**2).sum(axis=1)
    # one product in float32, in another order
    np.testing.assert_allclose(scene.squared(left, right), want, rtol=1e-4)


def test_the_angle_counts_the_bias():
    scene, *_ = layer_scene()
    want, got = scene.target + scene.offset, scene.left @ (2 * scene.right) + scene.offset
    cosine = (want * got).sum() / np.sqrt((want**2).sum() * (got**2).sum())
    assert scene.angle(scene.left, 2 * scene.right) == pytest.approx(1 - cosine, abs=1e-6)
    assert scene.angle(scene.left, scene.right) == pytest.approx(0.0, abs=1e-6)


def test_a_product_is_a_scene_too():
    left, right, gains = drawn(4, 6, 5), drawn(4, 5, 7), np.square(drawn(4, 6, 7))
    scene = Scene.of_product(ProductEvidence(left, right, gains, np.arange(4)))
    np.testing.assert_array_equal(scene.squared(left, right), np.zeros((4, 7)))
    assert scene.squared(left, 2 * right).sum() == pytest.approx(
        (gains * (left @ right) ** 2).sum(), rel=1e-5
    )


def test_rounding_is_that_of_the_grid():
    x = drawn(50) * 3
    got = rounded(x, np.float32(0.05), np.float32(40), 127)
    want = (np.clip(np.rint(x / np.float32(0.05)) + 40, 0, 127) - 40) * np.float32(0.05)
    np.testing.assert_array_equal(got, want)


def test_every_column_takes_its_best_scale():
    scene, *_ = layer_scene()
    left = rounded(scene.left, np.float32(0.1), np.float32(128), 255)
    base, limit = np.abs(scene.right).max(axis=1) / 8, 7
    fractions = np.linspace(0.3, 1.2, 31).astype(np.float32)
    scales, cost = column_scales(scene, left, base, fractions, limit)
    total = 0.0
    for group in range(2):
        for column in range(3):
            weight = scene.right[group, :, column]
            costs = []
            for fraction in fractions:
                step = base[group, column] * fraction
                codes = np.clip(np.rint(weight / step), -limit, limit)
                error = left[group] @ (codes * step) - scene.target[group, :, column]
                costs.append((scene.gains[group, :, column] * error**2).sum())
            best = int(np.argmin(costs))
            total += costs[best]
            assert scales[group, column] == pytest.approx(base[group, column] * fractions[best])
    assert cost == pytest.approx(total, rel=1e-4)


def test_one_scale_serves_a_whole_weight():
    right = drawn(1, 6, 4)
    got = rounded_weight(right, np.full((1, 1), 0.25, np.float32), 3)
    np.testing.assert_array_equal(got, np.clip(np.rint(right / 0.25), -3, 3) * 0.25)


def test_every_candidate_is_tried_with_stride_one():
    losses = RNG.permutation(101).astype(float)
    tried = []
    found, loss = least(101, lambda i: tried.append(i) or losses[i])
    assert (found, loss) == (int(losses.argmin()), 0.0)
    assert sorted(tried) == list(range(101))


@pytest.mark.parametrize("bottom", [0, 3, 50, 98, 100])
def test_a_stride_finds_the_bottom_of_a_valley(bottom):
    tried = []
    found, _ = least(101, lambda i: tried.append(i) or abs(i - bottom), stride=4)
    assert found == bottom
    assert len(tried) == len(set(tried)) <= 26 + 6


def test_the_first_of_equals_wins():
    assert least(9, lambda _: 1.0) == (0, 1.0)


def test_ends_hold_the_share_they_are_asked_for():
    centers = np.arange(-50.0, 50.0) + 0.5
    low, high = histogram_ends(centers, np.ones(100), 0.0, 0.895)
    # ten of a hundred values lie beyond on either side; an eleventh would be more than 10.5 %
    assert (low, high) == (-39.5, 39.5)


def test_exact_zeros_count():
    centers, counts = np.array([0.5, 1.5, 2.5]), np.array([0.0, 1.0, 1.0])
    assert histogram_ends(centers, counts, 98.0, 0.985) == (0.0, 1.5)
