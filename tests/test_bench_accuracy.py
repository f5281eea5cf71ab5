# SPDX-License-Identifier: Apache-2.0
"""Views of test pictures: the plain one first, the others mirrored and moved, none twice."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from _cases import VIEWS, Case

PICTURES = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)


def test_the_first_view_is_the_picture_itself():
    np.testing.assert_array_equal(VIEWS[0].of(PICTURES), PICTURES)


def test_views_are_mirrored_and_moved():
    mirrored = VIEWS[1].of(PICTURES)
    np.testing.assert_array_equal(mirrored, PICTURES[..., ::-1])
    moved = VIEWS[2].of(PICTURES)
    np.testing.assert_array_equal(moved[..., 2:, 2:], PICTURES[..., :-2, :-2])
    np.testing.assert_array_equal(moved[..., 0, 2:], PICTURES[..., 0, :-2])  # the edge repeated


def test_every_view_differs_and_keeps_its_labels(tmp_path, build):
    import onnx

    path = tmp_path / "net.onnx"
    onnx.save(build("g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Identity (x) }"), path)
    feeds = [{"x": PICTURES[i : i + 1]} for i in range(4)]
    case = Case(path, [], feeds, labels=[0, 1, 2, 3])
    seen = list(case.views(8, size=3))
    assert [labels for _, labels in seen] == [[0, 1, 2], [3]] * 8
    shown = [feed["x"].tobytes() for feed, _ in seen]
    assert len(set(shown)) == len(shown)
