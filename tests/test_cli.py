# SPDX-License-Identifier: Apache-2.0
"""The command line: results, exit statuses, one clear line for every failure, no partial file."""

import errno
import json
import os
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data
from PIL import Image

import qhyvit_onnx.placements
from qhyvit_onnx.cli import COMMANDS, main
from qhyvit_onnx.runtime import Arithmetic, Options, Session
from qhyvit_onnx.targets import TARGETS

NET = """
net (float[N, 3, 16, 16] x) => (float[N, 10] logits) {
  a = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, w_stem)
  b = Relu (a)
  c = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (b, w_conv)
  d = Relu (c)
  e = Conv <kernel_shape = [1, 1]> (d, w_point)
  f = GlobalAveragePool (e)
  g = Flatten (f)
  logits = Gemm <transB = 1> (g, w_head, b_head)
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
    """Work in a folder that holds a float model, calibration arrays and class folders of images."""
    model = build(NET, **WEIGHTS)
    for node, name in zip(model.graph.node, ("stem", "r1", "conv", "r2", "point"), strict=False):
        node.name = name
    onnx.save(model, tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((SAMPLES, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", x=x)
    for name in ("0", "1"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def quantized(home, capsys):
    assert main(["compile", "net.onnx", "--calib", "calib.npz", "-q"]) == 0
    capsys.readouterr()
    return home / "net.qdq.onnx"


@pytest.fixture
def refused(home, capsys):
    """Return a function: run, expect a status and one line with a word in it, nothing written."""

    def check(status, word, *arguments):
        before = sorted(home.rglob("*"))
        assert main([*arguments]) == status
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("qhv-onnx: error: ")
        assert word in said.err
        assert len(said.err.splitlines()) == 1
        assert sorted(home.rglob("*")) == before

    return check


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_compile_writes_model_and_report(home, capsys):
    assert main(["compile", "net.onnx", "--calib", "calib.npz"]) == 0
    said = capsys.readouterr()
    assert {"net.qdq.onnx", "net.qdq.report.json"} <= set(files(home))
    ops = {node.op_type for node in onnx.load(home / "net.qdq.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= ops
    report = json.loads((home / "net.qdq.report.json").read_text())
    assert sum(unit["int8"] for unit in report["units"]) >= 2
    for word in ("int8 here would cost", "SQNR", "net.qdq.report.json", "calibrate"):
        assert word in said.out
    assert "[ 5/13] calibrate" in said.err
    assert f"24 of {SAMPLES} samples" in said.err
    assert "\x1b" not in said.out + said.err
    assert max(map(len, said.out.splitlines())) <= 100


def test_compile_gives_the_same_bytes_again(quantized):
    first = quantized.read_bytes()
    assert main(["compile", "net.onnx", "--calib", "calib.npz", "-q", "--overwrite"]) == 0
    assert quantized.read_bytes() == first


def test_json_on_stdout_is_alone_there(home, capsys):
    arguments = ["--calib", "calib.npz", "-o", "out.onnx", "--json", "-"]
    assert main(["compile", "net.onnx", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((home / "out.report.json").read_text())


def test_json_file_takes_the_place_of_the_default(home):
    assert main(["compile", "net.onnx", "--calib", "calib.npz", "-q", "--json", "r.json"]) == 0
    assert {"net.qdq.onnx", "r.json"} <= set(files(home))
    assert "net.qdq.report.json" not in files(home)


def test_quiet_says_nothing_on_stderr(home, capsys):
    assert main(["compile", "net.onnx", "--calib", "calib.npz", "-q", "--dry-run"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert all(line.startswith("WARNING: int8 takes") for line in said)  # timing: may be slower


def test_verbose_says_where_every_unit_went(home, capsys):
    assert main(["compile", "net.onnx", "--calib", "calib.npz", "-v", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "float stem conv" in said.err
    assert "int8  conv" in said.err
    assert "nothing (--dry-run)" in said.out
    assert "net.qdq.onnx" not in files(home)


def test_names_users_know_and_both_separators(home):
    arguments = ["--calibration-data", "calib.npz", "--nodes-to-exclude", "po*nt", "-q"]
    shape = ["--input-shape", "x:1x3x16x16", "--calib-samples", "4", "--seed", "3"]
    assert main(["compile", "net.onnx", *arguments, *shape]) == 0
    report = json.loads((home / "net.qdq.report.json").read_text())
    reasons = {unit["name"]: unit["reason"] for unit in report["units"]}
    assert reasons["point"] == "excluded by 'po*nt'"
    assert report["data"]["samples"] == 4


def test_images_are_prepared_as_said(home, capsys):
    assert main(["compile", "net.onnx", "--calib", "images", "--preprocess", "unit"]) == 0
    err = capsys.readouterr().err
    assert "recipe   unit: resize short side 18, centre crop 16" in err
    assert "first    x [1, 3, 16, 16] min 0" in err


def test_without_data_it_warns_at_both_ends(home, capsys):
    assert main(["compile", "net.onnx", "--calib-samples", "4"]) == 0
    said = capsys.readouterr()
    assert said.err.count("WARNING: calibrated on bundled images") == 2
    assert "NOT FOR DEPLOYMENT" in said.out
    assert not json.loads((home / "net.qdq.report.json").read_text())["data"]["deployable"]


def test_not_onnx(home, refused):
    (home / "bad.onnx").write_text("hello")
    refused(3, "bad.onnx", "compile", "bad.onnx", "--calib", "calib.npz")


def test_truncated(home, refused):
    whole = (home / "net.onnx").read_bytes()
    (home / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    refused(3, "cut.onnx", "compile", "cut.onnx", "--calib", "calib.npz")


def test_external_data_missing(home, refused):
    model = onnx.load(home / "net.onnx")
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, home / "external.onnx")
    (home / "weights.bin").unlink()
    refused(3, "weights.bin", "compile", "external.onnx", "--calib", "calib.npz")


def test_already_quantized(quantized, refused):
    refused(3, "quantized already", "compile", "net.qdq.onnx", "--calib", "calib.npz")


def test_no_images(home, refused):
    (home / "empty").mkdir()
    refused(4, "empty", "compile", "net.onnx", "--calib", "empty")


def test_missing_data(refused):
    refused(4, "nowhere", "compile", "net.onnx", "--calib", "nowhere")


def test_one_corrupt_image(home, refused):
    (home / "images" / "1" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    refused(4, "2.png", "compile", "net.onnx", "--calib", "images", "-q")


@pytest.mark.parametrize("shape", ["x:1,3,8,8", "y:1,3,16,16", "x:1,3", "x", "x:1,a,3,3"])
def test_wrong_input_shape(refused, shape):
    refused(
        2, "--input-shape", "compile", "net.onnx", "--calib", "calib.npz", "--input-shape", shape
    )


def test_output_exists(quantized, refused):
    refused(2, "--overwrite", "compile", "net.onnx", "--calib", "calib.npz")


def test_output_folder_is_missing(refused):
    refused(6, "gone", "compile", "net.onnx", "--calib", "calib.npz", "-o", "gone/out.onnx")


def test_output_folder_takes_no_files(refused):
    refused(6, "/proc", "compile", "net.onnx", "--calib", "calib.npz", "-o", "/proc/out.onnx")


def test_output_is_the_input(refused):
    refused(2, "net.onnx", "compile", "net.onnx", "-o", "net.onnx", "--overwrite")


def test_report_over_the_model(refused):
    refused(2, "m.onnx", "compile", "net.onnx", "-o", "m.onnx", "--json", "m.onnx")


@pytest.mark.parametrize(
    ("word", "arguments"),
    [
        ("--calib", ["compile", "net.onnx", "--calb", "x"]),
        ("did you mean compile?", ["complie"]),
        ("net2.onnx", ["compile", "net2.onnx"]),
        ("MODEL", ["compile"]),
        ("w5a4", ["compile", "net.onnx", "--precision", "w5a4"]),
        ("GLOB=wXaY", ["compile", "net.onnx", "--bits", "w4a4"]),
        ("'sometimes'", ["compile", "net.onnx", "--fold", "sometimes"]),
        ("arm64", ["compile", "net.onnx", "--target", "z80"]),
        ("calib_samples", ["compile", "net.onnx", "--calib-samples", "0"]),
        ("'nope*'", ["compile", "net.onnx", "--calib", "calib.npz", "--exclude", "nope*", "-q"]),
        ("'nope*'", ["compile", "net.onnx", "--calib", "calib.npz", "--bits", "nope*=w4a8", "-q"]),
        ("fancy", ["compile", "net.onnx", "--calib", "images", "--preprocess", "fancy"]),
        ("--data", ["eval", "net.onnx", "net.onnx"]),
    ],
)
def test_usage(refused, word, arguments):
    refused(2, word, *arguments)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (KeyboardInterrupt(), (130, "interrupted")),
        (MemoryError(), (7, "memory")),
        (RuntimeError("oops"), (1, "bug in qhv-onnx")),
    ],
)
def test_what_else_stops_it(home, capsys, monkeypatch, raised, expected):
    status, word = expected
    monkeypatch.setattr(qhyvit_onnx.placements, "go_on", Mock(side_effect=raised))
    assert main(["compile", "net.onnx", "--calib", "calib.npz", "-q"]) == status
    err = capsys.readouterr().err
    assert word in err
    assert ("Traceback" in err) == (status == 1)
    assert "net.qdq.onnx" not in files(home)


def test_a_failed_write_leaves_neither_file(home, refused, monkeypatch, capsys):
    """The model cannot be put in place: the report must not stay alone."""
    replace = os.replace

    def full(source, target):
        if str(target).endswith(".qdq.onnx"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    refused(6, "No space left", "compile", "net.onnx", "--calib", "calib.npz", "-q")


def test_version(capsys):
    assert main(["version"]) == 0
    assert "onnxruntime" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(capsys, name):
    assert main([name, "--help"]) == 0
    assert f"qhv-onnx {name}" in capsys.readouterr().out


def test_help_names_every_target(capsys):
    main(["compile", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(target.name in text for target in TARGETS)


def test_profile_writes_a_table_that_compile_takes(home, refused, monkeypatch, capsys):
    from qhyvit_onnx.costs import profile
    from qhyvit_onnx.costs.table import load_table

    monkeypatch.setattr(
        profile, "measure", lambda chosen, tick: [tick(1, 1) or 1e4 for _ in chosen]
    )
    assert main(["profile", "-o", "board.toml"]) == 0
    assert load_table(home / "board.toml").name == "board"
    capsys.readouterr()
    refused(2, "--overwrite", "profile", "-o", "board.toml")
    refused(2, "does not end in .toml", "profile", "-o", "board.txt")
    refused(6, "gone", "profile", "-o", "gone/board.toml")
    assert (
        main(["compile", "net.onnx", "--calib", "calib.npz", "--target", "board.toml", "-q"]) == 0
    )


def test_emit_ort_writes_a_file_that_runs_and_what_it_needs(home, capsys):
    arguments = ["compile", "net.onnx", "--calib", "calib.npz", "--target", "arm64"]
    assert main([*arguments, "--emit", "ort"]) == 0
    assert "net.qdq.ort" in capsys.readouterr().out
    x = {"x": np.load(home / "calib.npz")["x"][:1]}
    options = Options(arithmetic=Arithmetic.EXACT)
    plain, converted = (
        Session(home / f"net.qdq.{kind}", options).run(x) for kind in ("onnx", "ort")
    )
    assert all(np.allclose(plain[name], converted[name], atol=1e-5) for name in plain)
    needed = (home / "net.qdq.required_operators_and_types.config").read_text()
    assert "QLinearConv" in needed
    assert str(home) not in needed
    assert not needed.startswith("#")


def test_nothing_is_written_when_one_of_four_files_exists(home, refused):
    (home / "net.qdq.ort").write_text("mine")
    refused(2, "net.qdq.ort exists", "compile", "net.onnx", "--calib", "calib.npz", "--emit", "ort")
