# SPDX-License-Identifier: Apache-2.0
"""What ``import qhyvit_onnx`` offers: sorted, complete, and free of heavy imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import qhyvit_onnx
from qhyvit_onnx import errors

ROOT = Path(__file__).parent.parent


def test_names_are_sorted_and_load():
    names = qhyvit_onnx.__all__
    assert names == sorted(names)
    assert all(getattr(qhyvit_onnx, name) is not None for name in names)
    assert set(names) <= set(dir(qhyvit_onnx))


def test_every_error_is_public():
    kinds = {
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.CompileError)
    }
    assert kinds <= set(qhyvit_onnx.__all__)


def test_compile_is_the_compiler():
    from qhyvit_onnx.compiler import compile_model

    assert qhyvit_onnx.compile is compile_model


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'decompile'"):
        qhyvit_onnx.decompile  # noqa: B018


def test_import_is_light():
    heavy = ["PIL", "click", "numpy", "onnx", "onnxruntime", "pydantic", "rich", "torch"]
    code = f"import sys, qhyvit_onnx; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
