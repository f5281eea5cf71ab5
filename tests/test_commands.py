# SPDX-License-Identifier: Apache-2.0
"""``inspect`` and ``eval``: what they show, as text and as JSON, and what they refuse."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import onnx
import pytest
from PIL import Image

from qhyvit_onnx.cli import main
from qhyvit_onnx.config import CompileConfig, Effort, Extent

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
    assert found["schema_version"] == 2
    assert found["families"]["convolution"] == {"Conv": 3}
    assert found["parameters"] == sum(int(np.prod(shape)) for shape in WEIGHTS.values())
    assert [unit["kind"] for unit in found["units"]][:3] == ["stem conv", "conv", "pointwise conv"]


def test_inspect_without_data_says_what_data_would_tell(home, capsys):
    assert main(["inspect", "net.onnx"]) == 0
    said = capsys.readouterr()
    assert "spread and cures need --calib" in said.out
    assert "spread>" not in said.out
    assert max(map(len, said.out.splitlines())) <= 100
    assert said.err == ""


def test_inspect_with_data_shows_trouble_spots(home, capsys):
    arguments = ["--calib", "plain.npz", "--calib-samples", "5", "--json", "found.json"]
    assert main(["inspect", "net.onnx", *arguments]) == 0
    out = capsys.readouterr().out
    assert "5 samples, arrays plain.npz" in out
    assert "widest tensors" in out
    assert "--calib DATA" not in out
    observed = json.loads((home / "found.json").read_text())["observed"]
    assert observed["samples"] == 5
    assert len(observed["spreads"]) >= 3
    assert not (home / "net.qdq.onnx").exists()


def test_inspect_verbose_lists_units_and_near_misses(home, build, capsys):
    text = NET.replace("e = Global", "n = LayerNormalization <axis = 1> (d, g) e = Global")
    text = text.replace("Pool (d)", "Pool (n)")
    onnx.save(build(text, g=(64, 16, 16), **WEIGHTS), home / "normed.onnx")
    assert main(["inspect", "normed.onnx", "-v"]) == 0
    out = capsys.readouterr().out
    assert "stem conv" in out.split("at best")[1]
    assert "near-misses" in out


def test_inspect_draws(home, capsys):
    (home / "map.svg").write_text("an older one")
    assert main(["inspect", "net.onnx", "--svg", "map.svg"]) == 0
    assert "map.svg" in capsys.readouterr().out
    assert ET.parse(home / "map.svg").getroot().tag.endswith("svg")
    assert [path.name for path in home.iterdir() if path.name.startswith(".qhv")] == []


@pytest.mark.parametrize(
    ("status", "word", "arguments"),
    [
        (2, "also an input", ["--svg", "net.onnx"]),
        (2, "also an input", ["--calib", "plain.npz", "--svg", "plain.npz"]),
        (2, "also an input", ["--json", "net.onnx"]),
        (2, "two files", ["--svg", "out", "--json", "./out"]),
        (2, "--preprocess", ["--preprocess", "unit"]),
        (2, "calib_samples", ["--calib", "plain.npz", "--calib-samples", "0"]),
        (4, "gone.npz", ["--calib", "gone.npz"]),
        (6, "does not exist", ["--svg", "gone/map.svg"]),
    ],
)
def test_inspect_refuses_before_it_works(home, refused, status, word, arguments):
    before = {path: path.read_bytes() for path in home.iterdir()}
    refused(status, word, "inspect", "net.onnx", *arguments)
    assert {path: path.read_bytes() for path in home.iterdir()} == before


@pytest.mark.parametrize("given", [["--svg", "map.svg"], ["--calib", "plain.npz"]])
def test_inspect_knows_too_little_of_a_quantized_model(home, quantized, refused, given):
    refused(3, "quantized already", "inspect", "net.qdq.onnx", *given)
    assert not (home / "map.svg").exists()


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


def config_in(path):
    """Return the config that a compiled model carries."""
    metadata = {item.key: item.value for item in onnx.load(path).metadata_props}
    return json.loads(metadata["qhyvit_onnx.config"])


def test_compile_without_options_takes_the_defaults(quantized):
    default, found = CompileConfig(), config_in(quantized)
    for name in ("recipe", "effort", "device", "placement"):
        assert found[name] == getattr(default, name)


def test_compile_options_reach_the_config(home):
    given = ["--effort", "fast", "--device", "cpu", "--placement", "full", "--recipe", "qhv"]
    assert main(["compile", "net.onnx", "--calib", "plain.npz", "-q", *given]) == 0
    found = config_in(home / "net.qdq.onnx")
    assert (found["effort"], found["placement"]) == (Effort.FAST, Extent.FULL)
    assert (found["device"], found["recipe"]) == ("cpu", "qhv")
    report = json.loads((home / "net.qdq.report.json").read_text())
    assert all(unit["int8"] for unit in report["units"])  # the stem too


@pytest.mark.parametrize(
    ("option", "bad", "known"),
    [
        ("--effort", "most", "default"),
        ("--placement", "partial", "full"),
        ("--device", "tpu", "cuda"),
    ],
)
def test_compile_refuses_a_choice_there_is_not(home, refused, option, bad, known):
    refused(2, known, "compile", "net.onnx", "--calib", "plain.npz", option, bad)
    assert not (home / "net.qdq.onnx").exists()


SIMULATE = ["--data", "labelled.npz", "--calib", "plain.npz", "--target", "arm64"]


def test_eval_simulates_a_recipe(home, capsys):
    pytest.importorskip("torch", reason="a simulation runs in torch, an extra")
    wanted = ["--recipe", "minmax", "--precision", "w6a6", "--json", "found.json"]
    assert main(["eval", "net.onnx", *SIMULATE, *wanted]) == 0
    out = capsys.readouterr().out
    assert "simulation" in out
    assert "minmax, w6a6, units of arm64" in out
    found = json.loads((home / "found.json").read_text())
    told = {"recipe": "minmax", "precision": "w6a6", "target": "arm64", "deployable": True}
    assert found["simulation"] == told
    assert (found["quantized_bytes"], found["samples"]) == (0, SAMPLES)
    assert found["outputs"]["logits"]["top1_int8"] is not None
    assert 5 < found["outputs"]["logits"]["sqnr_db"] < 40  # rounded, and not to noise


def test_eval_says_when_no_kernel_could_run_it(home, capsys):
    pytest.importorskip("torch", reason="a simulation runs in torch, an extra")
    assert main(["eval", "net.onnx", *SIMULATE, "--recipe", "repq-vit"]) == 0
    assert "no integer kernel takes its grids" in capsys.readouterr().out
    assert not list(home.glob("*.qdq.onnx"))


@pytest.mark.parametrize(
    ("word", "given"),
    [
        ("either QUANTIZED or --recipe", []),
        ("--precision goes with --recipe", ["--precision", "w6a6"]),
        ("--calib goes with --recipe", ["--calib", "plain.npz"]),
        ("'maxmin' is not known", ["--recipe", "maxmin"]),
        ("--arithmetic is for QUANTIZED", ["--recipe", "minmax", "--arithmetic", "exact"]),
    ],
)
def test_eval_refuses_what_it_cannot_compare(home, refused, word, given):
    refused(2, word, "eval", "net.onnx", "--data", "plain.npz", *given)


def test_eval_refuses_a_file_beside_a_recipe(quantized, refused):
    given = ["--data", "plain.npz", "--recipe", "minmax"]
    refused(2, "either QUANTIZED or --recipe", "eval", "net.onnx", "net.qdq.onnx", *given)


def test_eval_without_torch_says_what_to_install(home, refused, monkeypatch):
    monkeypatch.setattr("qhyvit_onnx.simulator.torch_is_installed", lambda: False)
    given = ["--data", "plain.npz", "--recipe", "minmax"]
    refused(2, "pip install 'qhyvit-onnx[torch]'", "eval", "net.onnx", *given)


@pytest.mark.parametrize("name", ["fq-vit", "ptq4vit", "repq-vit"])
def test_compile_refuses_what_can_only_be_simulated(home, refused, name):
    word = f"use qhv-onnx eval MODEL --recipe {name} --calib DATA --data DATA"
    refused(2, word, "compile", "net.onnx", "--calib", "plain.npz", "--recipe", name)
    assert sorted(path.name for path in home.iterdir()) == [
        "labelled.npz", "net.onnx", "plain.npz",
    ]  # fmt: skip


def test_help_lists_the_recipes(capsys):
    assert main(["eval", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "minmax, percentile, easyquant, fq-vit, ptq4vit, repq-vit, q-hyvit, qhv" in said
    assert main(["compile", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "minmax, percentile, easyquant, q-hyvit, qhv" in said
