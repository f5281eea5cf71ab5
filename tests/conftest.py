# SPDX-License-Identifier: Apache-2.0
"""Fixtures: models from ONNX text, onnxruntime, and golden graphs."""

import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.state import State

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden")


def build_model(text, **arrays):
    """Return the model of an ONNX text; ``arrays`` become initializers.

    A tuple is a shape: the array is drawn from a seed that depends on its name only. Without a
    header in the text, the model is opset 17.
    """
    if not text.lstrip().startswith("<"):
        text = '<ir_version: 8, opset_import: ["": 17]>\n' + text
    model = onnx.parser.parse_model(text)
    for name, given in arrays.items():
        array = drawn(name, given) if isinstance(given, tuple) else np.asarray(given)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def drawn(name, shape):
    """Return normal float32 numbers, the same ones for the same name and shape."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def build():
    return build_model


@pytest.fixture
def state():
    """Return a function: model -> State without calibration data."""
    return lambda model: State(model, CompileConfig(), ())


@pytest.fixture
def run_model():
    """Return a function: (model, feeds) -> list of outputs, from stock onnxruntime."""

    def run(model, feeds):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        data = model.SerializeToString()
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return session.run(None, feeds)

    return run


def skeleton(model):
    """Return one line a node: outputs = Op<attributes>(inputs). No weights, no versions."""
    return "".join(f"{_line(node)}\n" for node in model.graph.node)


def _line(node):
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    attrs = ", ".join(f"{name}={_shown(found[name])}" for name in sorted(found))
    inside = f"<{attrs}>" if attrs else ""
    return f"{', '.join(node.output)} = {node.op_type}{inside}({', '.join(node.input)})"


def _shown(value):
    if isinstance(value, float):
        return f"{value:g}"
    return value.decode() if isinstance(value, bytes) else value


@pytest.fixture
def golden(request):
    """Return a function that holds a model to ``golden/<case>.txt``."""

    def check(case, model):
        path, found = GOLDEN / f"{case}.txt", skeleton(model)
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(found)
        assert found == path.read_text()

    return check
