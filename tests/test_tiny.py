# SPDX-License-Identifier: Apache-2.0
"""The smoke test: everything hangs together. Under five seconds, run before every commit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qhyvit_onnx
from qhyvit_onnx.cli import COMMANDS, main
from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.pipeline import check_order, default_pipeline
from qhyvit_onnx.targets import TARGETS

ROOT = Path(__file__).parent.parent

NET = """
net (float[N, 32, 8, 8] x) => (float[N, 10] y) {
  a = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, w1)
  b = Relu (a)
  c = Conv <kernel_shape = [1, 1]> (b, w2)
  d = GlobalAveragePool (c)
  e = Flatten (d)
  y = Gemm <transB = 1> (e, w3, b3)
}
"""
WEIGHTS = {"w1": (64, 32, 3, 3), "w2": (64, 64, 1, 1), "w3": (10, 64), "b3": (10,)}


@pytest.mark.parametrize("arguments", [["--help"], ["compile", "--help"], ["eval", "-h"]])
def test_help_imports_nothing_heavy(arguments):
    heavy = ["numpy", "onnx", "onnxruntime", "pydantic", "rich", "scipy", "torch"]
    code = (
        "import sys; from qhyvit_onnx.cli import main; status = main(sys.argv[1:]); "
        f"print(status, [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "Usage: qhv-onnx" in done.stdout


def test_commands_have_modules():
    found = {path.stem for path in (ROOT / "qhyvit_onnx" / "commands").glob("[!_]*.py")}
    assert found == set(COMMANDS)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_order_of_the_pipeline(target):
    check_order(default_pipeline(CompileConfig(), target))


def test_passes_prints_the_pipeline(capsys):
    assert main(["passes"]) == 0
    out = capsys.readouterr().out
    passes = default_pipeline(CompileConfig(), TARGETS[0])
    places = [out.index(f"{number}  {item.name} ") for number, item in enumerate(passes, 1)]
    assert places == sorted(places)
    assert "gives grids" in out


def test_compiles_a_model(build, run_model):
    model = build(NET, **WEIGHTS)
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((1, 32, 8, 8)).astype(np.float32)} for _ in range(12)]
    config = CompileConfig(calib_samples=8, target="x64-vnni")
    compiled = qhyvit_onnx.compile(model, samples, config)
    assert compiled.report.int8_units >= 2
    assert compiled.report.held_back
    assert compiled.report.outputs[0].sqnr_db > 20.0  # 1 % of the energy
    want, got = (run_model(m, samples[-1])[0] for m in (model, compiled.model))
    assert np.abs(want - got).max() < 0.1 * np.abs(want).max()
