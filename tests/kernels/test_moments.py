# SPDX-License-Identifier: Apache-2.0
"""A difference between means counts as far as it is not chance."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="learning runs in torch, an extra")

from qhyvit_onnx.kernels.moments import Moments  # noqa: E402

SAMPLES, CHANNELS = 24, 2000


def moments(means):
    return Moments(torch.from_numpy(np.float32(means)), 1.0)


def drawn(shift, seed=0):
    rng = np.random.default_rng(seed)
    wanted = rng.standard_normal((SAMPLES, CHANNELS))
    return moments(wanted + shift + rng.standard_normal(wanted.shape)), moments(wanted)


def test_a_shift_that_stands_out_is_returned_nearly_whole():
    got, wanted = drawn(10.0)
    np.testing.assert_allclose(got.drift(wanted), 10.0, atol=1.0)


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3])
def test_it_is_closer_to_the_truth_than_the_plain_mean(spread):
    true = spread * np.random.default_rng(1).standard_normal(CHANNELS)
    got, wanted = drawn(true)
    plain = (got.means - wanted.means).mean(0).numpy()
    found = got.drift(wanted).numpy()
    assert np.square(found - true).mean() < np.square(plain - true).mean()
    assert np.all(np.abs(found) <= np.abs(plain))


def test_where_nothing_is_chance_it_is_hardly_worse():
    true = np.random.default_rng(1).standard_normal(CHANNELS)  # the plain mean errs by 0.2
    got, wanted = drawn(true)
    plain = (got.means - wanted.means).mean(0).numpy()
    found = got.drift(wanted).numpy()
    assert np.square(found - true).mean() < 1.2 * np.square(plain - true).mean()


@pytest.mark.parametrize("means", [[[1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]]])
def test_no_difference_and_one_sample_give_no_drift_that_is_not_there(means):
    assert torch.equal(moments(means).drift(moments(means)), torch.zeros(2))
    alone = moments([[5.0, 5.0]]).drift(moments([[1.0, 2.0]]))
    assert torch.equal(alone, torch.zeros(2))  # one sample cannot tell chance from drift


def test_the_spread_is_about_the_channels_means():
    held = Moments(torch.tensor([[3.0, -3.0], [3.0, -3.0]]), 10.0)
    assert held.spread == pytest.approx(1.0)
    assert Moments(torch.tensor([[3.0]]), 9.0 - 1e-6).spread == 0.0
