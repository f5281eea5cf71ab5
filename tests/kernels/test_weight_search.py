# SPDX-License-Identifier: Apache-2.0
"""Scales and codes together: near the best of a fine search, on scales that kernels can take."""

import numpy as np
import pytest

from qhyvit_onnx.kernels.evidence import LayerEvidence
from qhyvit_onnx.kernels.feedback import Feedback
from qhyvit_onnx.kernels.weight_search import cost_on_rows, search_fit
from tests.kernels.test_feedback import problem


def free(scale):
    return scale


def search(weight, feedback, limit, owners=None, lowest=0.35, legal=free):
    owners = np.arange(len(weight)) if owners is None else owners
    return search_fit(weight, feedback, owners, limit=limit, lowest=lowest, legal=legal)


def costs(weight, feedback, scale, limit):
    return feedback.round(weight, scale.astype(np.float32), limit).cost


@pytest.mark.parametrize(("limit", "slack"), [(7, 1.15), (31, 1.3), (127, 1.4)])
def test_a_fine_search_finds_little_more(limit, slack):
    gram, weight, _ = problem(0, groups=2, rows=12, width=48)
    feedback = Feedback(gram)
    found = search(weight, feedback, limit)
    peak = np.abs(weight).max(axis=1) / limit
    fine = np.min(
        [costs(weight, feedback, f * peak, limit) for f in np.linspace(1.0, 0.35, 100)], axis=0
    )
    mine = costs(weight, feedback, found.scale, limit)
    at_peak = costs(weight, feedback, peak, limit)
    assert (mine <= at_peak * (1 + 1e-6)).all()
    # 14 candidates against 100: the valley is found. Its floor is the rougher the more codes there
    # are, and the more candidates, the better the best of them.
    assert mine.sum() < slack * fine.sum()
    assert mine.sum() < 0.95 * at_peak.sum()


def test_codes_are_those_of_the_scales():
    gram, weight, _ = problem(1, groups=3, rows=4, width=10)
    feedback = Feedback(gram)
    found = search(weight, feedback, 7)
    again = feedback.round(weight, found.scale, 7)
    np.testing.assert_array_equal(found.codes, again.codes)


def test_rows_with_one_owner_have_one_scale():
    gram, weight, _ = problem(2, groups=2, rows=3, width=8)
    owners = np.array([0, 0, 0, 1, 1, 1])
    feedback = Feedback(gram)
    found = search(weight, feedback, 7, owners)
    assert found.scale.shape == (2,)
    again = feedback.round(weight, found.scale[owners], 7)
    np.testing.assert_array_equal(found.codes, again.codes)
    peak = np.array([np.abs(weight[owners == i]).max() / 7 for i in range(2)])
    at_peak = costs(weight, feedback, peak[owners], 7)
    assert (np.bincount(owners, again.cost) <= np.bincount(owners, at_peak) * (1 + 1e-6)).all()


def test_every_candidate_is_legal_before_it_is_scored():
    gram, weight, _ = problem(3, rows=5, width=8)
    feedback = Feedback(gram)
    least = (np.abs(weight).max(axis=1) / 5).astype(np.float32)  # above the peak's own scale
    found = search(weight, feedback, 7, legal=lambda scale: np.maximum(scale, least))
    np.testing.assert_array_equal(found.scale, least)
    np.testing.assert_array_equal(found.codes, feedback.round(weight, least, 7).codes)


def test_a_row_of_zeros_takes_the_scale_it_is_given():
    gram, weight, _ = problem(4, rows=4, width=8)
    weight[2] = 0.0
    found = search(
        weight, Feedback(gram), 7, legal=lambda scale: np.where(scale > 0, scale, np.float32(0.5))
    )
    assert found.scale[2] == np.float32(0.5)
    assert not found.codes[2].any()


def test_the_cost_on_rows_is_that_of_the_outputs():
    rng = np.random.default_rng(7)
    groups, columns, width, places = 3, 2, 5, 40
    rows = rng.standard_normal((places, groups, width)).astype(np.float32)
    gains = rng.uniform(0, 1, (places, groups * columns)).astype(np.float32)
    error = rng.standard_normal((groups * columns, width)).astype(np.float32)
    gram = np.zeros((groups, width, width), np.float32)
    found = cost_on_rows(error, LayerEvidence(gram, rows, gains))
    for channel in range(groups * columns):
        moved = rows[:, channel // columns] @ error[channel]
        want = float((gains[:, channel] * np.square(moved)).sum())
        assert found[channel] == pytest.approx(want, rel=1e-5)
