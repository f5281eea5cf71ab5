# SPDX-License-Identifier: Apache-2.0
"""``inspect`` and ``eval``: what they show, as text and as JSON, and what they refuse."""

import json

import numpy as np
import onnx
import pytest
from PIL import Image

from qhyvit_onnx.cli import main

NET = """
net (float[N, 3, 16, 16] x) => (float[N, 10] logits) {
  a = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, w_stem)
  b = Relu (a)
  c = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (b, w_conv)
  d = Conv <kernel_shape = [1, 1]> (c, w_point)
  e = GlobalAveragePool (d)
  f = Flatten (e)
  logits = Gemm <transB = 1> (f, w_head, b_head)
}
"""
WEIGHTS = {
    "w_stem": (32, 3, 3, 3),
    "w_conv": (64, 32, 3, 3),
    "w_point": (64, 64, 1, 1),
    "w_head": (10, 64),
    "b_head": (10,),
}
SAMPLES = 24


@pytest.fixture
def home(tmp_path, build, monkeypatch):
    """Work in a folder that holds a float model and arrays with labels and without."""
    onnx.save(build(NET, **WEIGHTS), tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((SAMPLES, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "plain.npz", x=x)
    np.savez(tmp_path / "labelled.npz", x=x, y=rng.integers(0, 10, SAMPLES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def quantized(home, capsys):
    assert main(["compile", "net.onnx", "--calib", "plain.npz", "-q"]) == 0
    capsys.readouterr()
    return home / "net.qdq.onnx"


@pytest.fixture
def refused(capsys):
    def check(status, word, *arguments):
        assert main([*arguments]) == status
        said = capsys.readouterr()
        assert said.out == ""
        assert word in said.err
        assert len(said.err.splitlines()) == 1

    return check


def test_inspect_shows_what_is_in_a_model(home, capsys):
    assert main(["inspect", "net.onnx", "--target", "x64-vnni", "-v"]) == 0
    out = capsys.readouterr().out
    for word in (
        "opset ai.onnx 17",
        "x float [N*, 3, 16, 16]",
        "3 Conv",
        "pointwise conv",
        "point",
    ):
        assert word in out


def test_inspect_json(home, capsys):
    assert main(["inspect", "net.onnx", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    assert found["families"]["convolution"] == {"Conv": 3}
    assert found["parameters"] == sum(int(np.prod(shape)) for shape in WEIGHTS.values())
    assert [unit["kind"] for unit in found["units"]][:3] == ["stem conv", "conv", "pointwise conv"]


def test_inspect_looks_at_a_quantized_model(quantized, capsys):
    assert main(["inspect", "net.qdq.onnx"]) == 0
    assert "quantized already" in capsys.readouterr().out


def test_inspect_refuses_what_is_no_model(home, refused):
    (home / "bad.onnx").write_text("hello")
    refused(3, "bad.onnx", "inspect", "bad.onnx")


def test_eval_uses_labels(quantized, capsys):
    assert main(["eval", "net.onnx", "net.qdq.onnx", "--data", "labelled.npz", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == SAMPLES
    assert 0.0 <= found["outputs"]["logits"]["top1_float"] <= 1.0


def test_eval_without_labels(quantized, capsys):
    assert main(["eval", "net.onnx", "net.qdq.onnx", "--data", "plain.npz", "--samples", "5"]) == 0
    out = capsys.readouterr().out
    assert "5 samples" in out
    assert "agreement" in out
    assert "top-1" not in out


def test_eval_takes_labels_of_class_folders(home, quantized, capsys):
    for name in ("0", "1"):
        (home / "images" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), "red").save(home / "images" / name / "red.png")
    assert (
        main(["eval", "net.onnx", "net.qdq.onnx", "--data", "images", "--preprocess", "unit"]) == 0
    )
    assert "top-1 float" in capsys.readouterr().out


def test_eval_refuses_models_in_the_wrong_order(quantized, refused):
    refused(3, "net.qdq.onnx", "eval", "net.qdq.onnx", "net.onnx", "--data", "plain.npz")


def test_eval_refuses_labels_of_another_length(quantized, home, refused):
    (home / "labels.txt").write_text("1\n2\n3\n")
    given = ["--data", "plain.npz", "--labels", "labels.txt"]
    refused(4, "3 labels", "eval", "net.onnx", "net.qdq.onnx", *given)
