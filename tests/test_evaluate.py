# SPDX-License-Identifier: Apache-2.0
"""Two models side by side: labels, draws, and what cannot be compared."""

import numpy as np
import pytest

from qhyvit_onnx.data import Feeds, Origin
from qhyvit_onnx.data.labels import by_run, draw, read_labels, with_labels
from qhyvit_onnx.errors import DataError, ModelError, PassError
from qhyvit_onnx.evaluate import compare
from qhyvit_onnx.runtime import Session

SAME = "m (float[N, 4] x) => (float[N, 4] y) { y = Identity (x) }"
NEGATED = "m (float[N, 4] x) => (float[N, 4] y) { y = Neg (x) }"
RENAMED = "m (float[N, 4] x) => (float[N, 4] z) { z = Neg (x) }"
WIDER = "m (float[N, 4] x) => (float[N, 8] y) { y = Concat <axis = 1> (x, x) }"


def feeds(runs=6, batch=1):
    """Return samples whose class is their own number modulo 4."""
    total = runs * batch
    rows = np.eye(4, dtype=np.float32)[np.arange(total) % 4]
    samples = [{"x": rows[start : start + batch]} for start in range(0, total, batch)]
    labels = tuple(index % 4 for index in range(total))
    origin = Origin(taken=total, available=total)
    return Feeds(lambda: iter(samples), runs, origin, labels)


@pytest.fixture
def session(build):
    return lambda text: Session(build(text))


@pytest.mark.parametrize("batch", [1, 3])
def test_labels_give_top1_of_both(session, batch):
    data = feeds(batch=batch)
    found = compare(session(SAME), session(NEGATED), data, labels=by_run(data))["y"]
    assert (found.top1_float, found.top1_int8, found.agreement) == (1.0, 0.0, 0.0)
    assert found.samples == 6 * batch
    assert found.cosine == pytest.approx(-1.0)


def test_without_labels_there_is_no_top1(session):
    found = compare(session(SAME), session(SAME), feeds(), limit=2)["y"]
    assert found.top1_float is None
    assert (found.samples, found.agreement, found.sqnr_db) == (2, 1.0, 200.0)


def test_labels_beyond_the_classes_are_not_used(session):
    found = compare(session(SAME), session(SAME), feeds(1), labels=[(4,)])["y"]
    assert found.top1_float is None


@pytest.mark.parametrize(("other", "word"), [(RENAMED, "no output 'y'"), (WIDER, "shape")])
def test_models_that_cannot_be_compared(session, other, word):
    with pytest.raises(ModelError, match=word):
        compare(session(SAME), session(other), feeds())
    with pytest.raises(PassError, match=word):
        compare(session(SAME), session(other), feeds(), blame=PassError)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_draw_keeps_labels_with_their_samples(batch):
    drawn = draw(feeds(8, batch), 4, seed=1)
    assert len(drawn) == 4 // batch
    for feed, labels in zip(drawn, by_run(drawn), strict=True):
        assert feed["x"].argmax(axis=1).tolist() == list(labels)
    assert draw(feeds(8, batch), 4, seed=1).labels == drawn.labels


def test_labels_from_files(tmp_path):
    np.save(tmp_path / "y.npy", np.array([3, 1, 2]))
    (tmp_path / "y.txt").write_text("3\n1\n2\n")
    assert read_labels(tmp_path / "y.npy") == read_labels(tmp_path / "y.txt") == (3, 1, 2)
    assert with_labels(feeds(3), (3, 1, 2)).labels == (3, 1, 2)


@pytest.mark.parametrize("name", ["gone.npy", "gone.txt", "words.txt", "floats.npy", "square.npy"])
def test_labels_that_are_none(tmp_path, name):
    (tmp_path / "words.txt").write_text("cat\ndog\n")
    np.save(tmp_path / "floats.npy", np.ones(3))
    np.save(tmp_path / "square.npy", np.ones((2, 2), np.int64))
    with pytest.raises(DataError, match=name):
        read_labels(tmp_path / name)


def test_one_label_a_sample():
    with pytest.raises(DataError, match="2 labels, the data 3 samples"):
        with_labels(feeds(3), (1, 2))
