# SPDX-License-Identifier: Apache-2.0
"""The bundled model end to end, as ``make demo`` runs it: compiled, evaluated, reported."""

import json
from pathlib import Path

import onnx
import pytest

from qhyvit_onnx.cli import main

DEMO = Path(__file__).resolve().parent.parent / "tools" / "demo"
RECIPE = ["--preprocess", str(DEMO / "preprocess.toml")]


@pytest.fixture(scope="module", params=["arm64", "x64-avx2"])
def compiled(request, tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "demo.qdq.onnx"
    arguments = ["compile", str(DEMO / "model.onnx"), "-o", str(output), "--target", request.param]
    assert main([*arguments, "--calib", str(DEMO / "calib"), *RECIPE, "-q"]) == 0
    return output


def test_keeps_the_accuracy(compiled, tmp_path):
    result = tmp_path / "result.json"
    files = [str(DEMO / "model.onnx"), str(compiled)]
    data = ["--data", str(DEMO / "eval"), *RECIPE, "--arithmetic", "exact", "--json", str(result)]
    assert main(["eval", *files, *data]) == 0
    (output,) = json.loads(result.read_text())["outputs"].values()
    assert output["samples"] == 256
    assert output["top1_float"] >= 0.97
    # one image of 256 is 0.4 points: at most one more is read wrong
    assert output["top1_float"] - output["top1_int8"] <= 0.005


def test_is_small_and_says_what_it_is(compiled):
    model = onnx.load(compiled)
    known = {item.key: item.value for item in model.metadata_props}
    assert known["qhyvit_onnx.calibration"] == "images, 64 samples"
    assert known["qhyvit_onnx.deployable"] == "yes"
    assert compiled.stat().st_size < 0.45 * (DEMO / "model.onnx").stat().st_size


def test_report_tells_every_layer(compiled):
    report = json.loads(compiled.with_name("demo.qdq.report.json").read_text())
    assert report["schema_version"] == 1
    assert [item["name"] for item in report["passes"]][:2] == ["normalise", "fold-norms"]
    assert all(unit["kernel"] if unit["int8"] else unit["reason"] for unit in report["units"])
    assert sum(unit["int8"] for unit in report["units"]) >= 30
    assert len(report["bridges"]) == 4
