# SPDX-License-Identifier: Apache-2.0
"""Figures of closeness, held to plain numpy over all samples at once."""

import numpy as np
import pytest

from qhyvit_onnx.metrics import Comparison, decides


def pairs(shape, count=5, noise=0.3):
    rng = np.random.default_rng(7)
    reference = [rng.normal(0.5, 1, shape).astype(np.float32) for _ in range(count)]
    return reference, [
        x + (noise * rng.standard_normal(shape)).astype(np.float32) for x in reference
    ]


def compared(reference, candidate, labels=None):
    comparison = Comparison()
    for index, (x, y) in enumerate(zip(reference, candidate, strict=True)):
        comparison.add(x, y, None if labels is None else labels[index])
    return comparison.result()


@pytest.mark.parametrize("shape", [(2, 10), (1, 5, 10), (2, 10, 3, 4), (7,)])
def test_equals_numpy(shape):
    reference, candidate = pairs(shape)
    found = compared(reference, candidate)
    x, y = (np.concatenate([a.reshape(-1) for a in side]).astype(np.float64)
            for side in (reference, candidate))  # fmt: skip
    assert found.sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()))
    assert found.cosine == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)))
    axis = 1 if len(shape) == 4 else -1
    same = np.mean([a.argmax(axis) == b.argmax(axis)
                    for a, b in zip(reference, candidate, strict=True)])  # fmt: skip
    assert found.agreement == pytest.approx(same)
    assert found.samples == 5 * (shape[0] if shape else 1)
    assert (found.top1_float, found.top1_int8) == (None, None)


def test_a_map_decides_at_every_position_over_its_channels():
    x, y = np.zeros((1, 3, 2, 2), np.float32), np.zeros((1, 3, 2, 2), np.float32)
    x[0, 1], y[0, 1] = 1.0, 1.0
    y[0, 2, 0, 0] = 2.0  # one of the four positions chooses another channel
    assert compared([x], [y]).agreement == 0.75


@pytest.mark.parametrize("batch", [1, 4])
def test_top1(batch):
    rng = np.random.default_rng(1)
    labels = [rng.integers(0, 6, batch) for _ in range(8)]
    right = [np.eye(6, dtype=np.float32)[row] for row in labels]
    wrong = [np.roll(row, 1, axis=1) if i % 4 == 0 else row for i, row in enumerate(right)]
    found = compared(right, wrong, labels)
    assert (found.top1_float, found.top1_int8, found.agreement) == (1.0, 0.75, 0.75)


def test_equal_outputs_have_a_finite_ratio():
    reference, _ = pairs((1, 4))
    found = compared(reference, reference)
    assert (found.sqnr_db, found.agreement) == (200.0, 1.0)
    assert found.cosine == pytest.approx(1.0)


def test_opposite_outputs():
    reference, _ = pairs((1, 4))
    found = compared(reference, [-x for x in reference])
    assert found.cosine == pytest.approx(-1.0)
    assert found.sqnr_db == pytest.approx(10 * np.log10(0.25))


def test_integers_and_numbers_without_dims():
    found = compared([np.int64(3), np.int64(4)], [np.int64(3), np.int64(4)])
    assert (found.sqnr_db, found.samples) == (200.0, 2)


def test_an_output_of_zeros_is_judged_without_dividing_by_zero():
    zeros = [np.zeros((1, 3), np.float32)]
    found = compared(zeros, zeros)
    assert np.isfinite([found.sqnr_db, found.cosine, found.agreement]).all()


def test_an_equal_output_of_zeros_is_perfect():
    zeros = [np.zeros((1, 3), np.float32)]
    assert compared(zeros, zeros).sqnr_db == 200.0


@pytest.mark.parametrize("hole", [-np.inf, np.inf, np.nan])
def test_what_is_not_finite_in_both_does_not_count(hole):
    reference, candidate = pairs((2, 10))
    masked = [[np.append(x.reshape(-1), np.float32(hole)) for x in side]
              for side in (reference, candidate)]  # fmt: skip
    found, plain = compared(*masked), compared(reference, candidate)
    assert (found.sqnr_db, found.cosine) == pytest.approx((plain.sqnr_db, plain.cosine))


@pytest.mark.parametrize(("here", "there"), [(np.inf, 1), (1, np.nan), (np.inf, -np.inf)])
def test_what_is_not_finite_on_one_side_is_no_small_error(here, there):
    found = compared([np.float32([[3, here]])] * 2, [np.float32([[3, there]])] * 2)
    assert (found.sqnr_db, found.cosine) == (-200.0, 0.0)


def test_no_samples():
    found = Comparison().result()
    assert (found.samples, found.agreement) == (0, 0.0)


@pytest.mark.parametrize(
    ("shape", "decisions", "classes", "verdict"),
    [
        ((4, 10), 4, 10, True),
        ((4, 10), 4, 11, False),
        ((4, 10), 1, 10, False),
        ((1, 10, 2, 2), 4, 10, True),
        ((1, 10, 2, 2), 1, 10, False),
        ((10,), 1, 10, True),
    ],
)
def test_which_output_the_labels_are_about(shape, decisions, classes, verdict):
    assert decides(np.zeros(shape, np.float32), decisions, classes) is verdict
