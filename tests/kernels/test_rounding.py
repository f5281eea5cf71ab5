# SPDX-License-Identifier: Apache-2.0
"""What learning may change: soft codes, activation scales, biases."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="learning runs in torch, an extra")

from qhyvit_onnx.grid import Grid, WeightGrid  # noqa: E402
from qhyvit_onnx.kernels.rounding import BiasShift, LearnedScale, SoftRounding  # noqa: E402

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 6)).astype(np.float32)
GRID = WeightGrid((np.abs(WEIGHT).max(axis=1) / 5).astype(np.float32), 0, 7)


def rounding(codes=None):
    return SoftRounding(WEIGHT, GRID, GRID.codes(WEIGHT) if codes is None else codes, "cpu")


def test_a_soft_weight_starts_where_the_weight_is():
    # NEARLY keeps elements 1 % of a stretched step away from the ends
    soft = rounding()(torch.empty(0)).detach().numpy()
    assert np.abs(soft - WEIGHT).max() < 0.12 * GRID.scale.max()
    assert np.abs(soft - WEIGHT).mean() < 0.02 * GRID.scale.mean()


def test_settled_it_is_what_nearest_codes_give():
    item = rounding()
    item.settled = True
    np.testing.assert_array_equal(item.codes(), GRID.codes(WEIGHT))
    np.testing.assert_allclose(item(torch.empty(0)).numpy(), GRID.fake(WEIGHT), rtol=1e-6, atol=0)


def test_it_starts_on_the_side_of_given_codes():
    ratio = WEIGHT / GRID.spread(2)
    flipped = np.where(RNG.random(WEIGHT.shape) < 0.5, np.floor(ratio), np.ceil(ratio))
    codes = flipped.astype(np.int8)
    np.testing.assert_array_equal(rounding(codes).codes(), codes)


def test_codes_stay_inside_the_limit_and_next_to_the_weight():
    narrow = WeightGrid(GRID.scale / 3, 0, 7)  # many weights lie outside
    item = SoftRounding(WEIGHT, narrow, narrow.codes(WEIGHT), "cpu")
    ratio = np.clip(WEIGHT / narrow.spread(2), -7, 7)
    for push in (-50.0, 50.0):
        with torch.no_grad():
            item.learned.fill_(push)
        assert np.abs(item.codes()).max() <= 7
        assert np.abs(item.codes() - ratio).max() <= 1 + 1e-6


def test_being_undecided_costs_most_in_the_middle():
    item = rounding()
    with torch.no_grad():
        item.learned.fill_(0.0)
    assert float(item.undecided(2.0).detach()) == pytest.approx(WEIGHT.size)
    with torch.no_grad():
        item.learned.fill_(20.0)
    assert float(item.undecided(2.0).detach()) == pytest.approx(0.0)


def test_the_pull_leads_to_the_nearest_code():
    item = rounding()
    optimizer = torch.optim.Adam([item.learned], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        item.undecided(4.0).backward()
        optimizer.step()
    up = item._up().detach().numpy()
    assert np.minimum(up, 1 - up).max() < 1e-3
    assert (item.codes() == GRID.codes(WEIGHT)).mean() > 0.9


def test_a_learned_scale_starts_at_its_grid():
    grid = Grid(0.1, 3, 4)
    x = torch.linspace(-1, 2, 101)
    item = LearnedScale(grid, "cpu")
    np.testing.assert_allclose(item(x).detach().numpy(), grid.fake(x.numpy()), atol=1e-6)
    assert item.scale() == pytest.approx(0.1)


def test_a_scale_learns_what_represents_its_tensor_best():
    # a grid four times too wide for the data shrinks, one four times too narrow grows
    x = torch.from_numpy(np.abs(RNG.standard_normal(4000)).astype(np.float32))
    for start in (0.8, 0.05):
        item = LearnedScale(Grid(start, 0, 4), "cpu")
        optimizer = torch.optim.Adam([item.learned], lr=0.02)
        for _ in range(200):
            optimizer.zero_grad()
            (item(x) - x).square().mean().backward()
            optimizer.step()
        assert 0.15 < item.scale() < 0.3  # 15 steps over 3 sigma are 0.2


def test_dropped_elements_are_seen_unrounded():
    torch.manual_seed(0)
    item = LearnedScale(Grid(0.5, 0, 4), "cpu")
    x = torch.rand(10_000) * 7
    item.dropped = 0.25
    assert float((item(x) == x).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_a_bias_is_corrected_and_counted_in_other_units():
    bias = RNG.standard_normal((1, 1, 5)).astype(np.float32)
    item = BiasShift(bias, np.zeros_like(bias), None, "cpu")
    error = torch.arange(5.0)
    item.rescale(0.25)
    item.correct(error)
    want = bias - error.numpy().reshape(1, 1, 5)
    np.testing.assert_allclose(item.bias(), want, atol=1e-6)
    item.rescale(0.01)
    np.testing.assert_allclose(item.bias(), want, atol=1e-5)
    np.testing.assert_allclose(item(torch.from_numpy(bias)).detach().numpy(), want, atol=1e-5)
