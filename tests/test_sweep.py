# SPDX-License-Identifier: Apache-2.0
"""A bound on accuracy: the fastest placement that holds it is emitted, or none is."""

from itertools import pairwise

import numpy as np
import onnx
import pytest

from qhyvit_onnx.cli import main
from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig, Effort, Verification
from qhyvit_onnx.errors import ConfigError, DataError, TargetMissedError
from qhyvit_onnx.facts import DROP, SEARCHED, Drop
from qhyvit_onnx.metrics import Closeness
from qhyvit_onnx.passes._base import Outcome
from qhyvit_onnx.passes.measure import Measure, drop_of
from qhyvit_onnx.passes.sense import Sense
from qhyvit_onnx.runtime import Session
from qhyvit_onnx.sweep import SHARES, Bound
from tests.conftest import build_model

CONV = "Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]>"
NET = f"""g (float[n, 3, 32, 32] x) => (float[n, 10] y) {{
    a0 = {CONV} (x, wa) a = Relu (a0) b0 = {CONV} (a, wb) b = Relu (b0) c0 = {CONV} (b, wb)
    c = Relu (c0) d0 = {CONV} (c, wb) d = Relu (d0) s = Add (d, b)
    p = GlobalAveragePool (s) f = Flatten (p) y = Gemm (f, wy)
}}"""


def net():
    rng = np.random.default_rng(0)

    def weight(*shape):
        return (rng.normal(0, 1, shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)

    return build_model(NET, wa=weight(32, 3, 3, 3), wb=weight(32, 32, 3, 3), wy=weight(32, 10))


def images(count, seed):
    return np.random.default_rng(seed).normal(0, 1, (count, 3, 32, 32)).astype(np.float32)


CALIB = [{"x": image[None]} for image in images(8, 1)]


def labels_of(x):
    """Return what the float net itself decides, but for every fifth image."""
    found = Session(net()).run({"x": x})["y"].argmax(axis=1)
    return np.where(np.arange(len(x)) % 5, found, (found + 1) % 10)


@pytest.fixture
def data(tmp_path):
    """Return a file of labelled images."""
    x = images(60, 2)
    np.savez(tmp_path / "eval.npz", x=x, labels=labels_of(x))
    return tmp_path / "eval.npz"


def swept(max_drop, data, precision="w4a4", **more):
    config = CompileConfig(
        target="arm64", effort=Effort.FAST, precision=precision, edge_precision=precision,
        verification=Verification(samples=2, rounds=0),
    )  # fmt: skip
    return compile_model(net(), CALIB, config, bound=Bound(max_drop=max_drop, data=data, **more))


@pytest.fixture
def scripted(monkeypatch):
    """Let the placements lose what is given, one after the other; give the models they emit."""

    def script(*drops):
        left, emitted = list(drops), []

        def run(_measure, state):
            emitted.append(state.model())
            state.put(DROP, Drop(left.pop(0), labelled=True))
            return Outcome(0, "scripted")

        monkeypatch.setattr(Measure, "run", run)
        return emitted

    return script


def test_the_first_that_holds_is_emitted(scripted, data):
    emitted = scripted(3.0, 2.0, 0.5, 0.1)
    found = swept(0.5, data)
    assert [(point.drop, point.holds) for point in found.report.front] == [
        (3.0, False), (2.0, False), (0.5, True),
    ]  # fmt: skip
    assert len(emitted) == 3
    assert found.report.int8_units == found.report.front[-1].int8_units
    run = {"x": images(2, 3)}
    np.testing.assert_array_equal(
        Session(found.model).run(run)["y"], Session(emitted[-1]).run(run)["y"]
    )


def test_they_become_more_careful_and_slower(scripted, data):
    scripted(*[9.0] * len(SHARES))
    with pytest.raises(
        TargetMissedError, match=r"at most 1 points of top-1.*loses 9\.00"
    ) as caught:
        swept(1.0, data)
    front = caught.value.front
    assert 3 <= len(front) <= len(SHARES)
    for fast, slow in pairwise(front):
        assert fast.predicted_ratio < slow.predicted_ratio <= 1
        assert fast.int8_units > slow.int8_units
        assert fast.share < slow.share


def test_what_is_lost_is_what_an_evaluation_finds(data):
    front = swept(100.0, data).report.front
    arrays = np.load(data)
    found = swept(100.0, data)
    got = Session(found.model).run({"x": arrays["x"]})["y"].argmax(axis=1)
    want = Session(net()).run({"x": arrays["x"]})["y"].argmax(axis=1)
    right, still = ((row == arrays["labels"]).mean() for row in (want, got))
    assert front[0].drop == pytest.approx(100 * (right - still))
    assert front[0].labelled


def test_without_labels_decisions_count(tmp_path):
    np.save(tmp_path / "eval.npy", images(40, 2))
    (point,) = swept(100.0, tmp_path / "eval.npy").report.front
    assert not point.labelled
    assert 0 < point.drop < 100


def test_labels_may_come_in_a_file(tmp_path):
    x = images(40, 2)
    np.save(tmp_path / "eval.npy", x)
    np.savetxt(tmp_path / "labels.txt", labels_of(x), fmt="%d")
    (point,) = swept(100.0, tmp_path / "eval.npy", labels=tmp_path / "labels.txt").report.front
    assert point.labelled


def test_labels_must_fit_an_output(tmp_path):
    np.savez(tmp_path / "eval.npz", x=images(8, 2), labels=np.arange(8) + 50)
    with pytest.raises(DataError, match="fit no output"):
        swept(1.0, tmp_path / "eval.npz")


def test_the_worst_output_counts():
    def item(top1, agreement):
        return Closeness(20.0, 0.9, agreement, 10, top1 and 0.8, top1)

    found = {"a": item(0.7, 0.5), "b": item(0.75, 0.1), "c": item(None, 0.0)}
    assert drop_of(found, labelled=True).points == pytest.approx(10)
    assert drop_of(found, labelled=False).points == pytest.approx(100)


@pytest.mark.parametrize("points", [-0.1, 100.5, float("nan")])
def test_a_bound_that_makes_no_sense(points, data):
    with pytest.raises(ConfigError, match="need 0 to 100 points"):
        Bound(max_drop=points, data=data)


def test_noise_is_measured_once(scripted, data, monkeypatch):
    scripted(9.0, 9.0, 0.0)
    calls = []
    real = Sense.run
    monkeypatch.setattr(Sense, "run", lambda *args: calls.append(1) or real(*args))
    swept(1.0, data)
    assert len(calls) == 1


def test_a_fork_leaves_its_origin_alone(state):
    first = state(net())
    other = first.fork()
    other.put(SEARCHED, None)
    other.graph.nodes[0].inputs.clear()
    other.graph.cleanup()
    assert not first.has(SEARCHED)
    assert first.graph.nodes[0].inputs
    onnx.checker.check_model(first.model())


@pytest.fixture
def run(tmp_path):
    """Return what runs ``compile`` on files; its output would be at ``tmp_path / "q.onnx"``."""
    onnx.save(net(), tmp_path / "net.onnx")
    np.save(tmp_path / "calib.npy", images(8, 1))
    files = [str(tmp_path / name) for name in ("net.onnx", "q.onnx", "calib.npy")]

    def compile_with(*options):
        return main([
            "compile", files[0], "-o", files[1], "--calib", files[2], "-q", "--effort", "fast",
            "--target", "arm64", "--precision", "w4a4", "--edge-precision", "w4a4", *options,
        ])  # fmt: skip

    return compile_with


def test_missed_is_status_5_with_the_front_and_no_file(run, data, scripted, capsys, tmp_path):
    scripted(*[9.0] * len(SHARES))
    assert run("--max-drop", "1", "--eval", str(data)) == 5
    out, err = capsys.readouterr()
    assert out.count("9.00 points") >= 3
    assert err.splitlines()[-1].startswith("qhv-onnx: error: no placement loses at most 1 points")
    assert not list(tmp_path.glob("q.*"))


def test_held_is_status_0_with_the_front_in_the_summary(run, data, capsys, tmp_path):
    assert run("--max-drop", "100", "--eval", str(data)) == 0
    assert "within bound" in capsys.readouterr().out
    assert (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize("options", [("--max-drop", "1"), ("--eval", "calib"), ("--labels", "x")])
def test_bound_and_data_go_together(run, options, capsys):
    assert run(*options) == 2
    assert "--max-drop POINTS and --eval DATA go together" in capsys.readouterr().err


def test_the_evaluation_data_is_not_overwritten(run, data, capsys):
    options = ("--max-drop", "1", "--eval", str(data), "--json", str(data), "--overwrite")
    assert run(*options) == 2
    assert str(data) in capsys.readouterr().err
