# SPDX-License-Identifier: Apache-2.0
"""What is said of the nodes of a compiled model is what onnxruntime runs."""

import json

import numpy as np
import onnx
import pytest

from qhyvit_onnx.cli import main
from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig, Effort, Guard, Verification
from qhyvit_onnx.errors import ConfigError, ModelError
from qhyvit_onnx.explain import Runs, explain
from qhyvit_onnx.runtime import Options, View, optimized
from tests.conftest import build_model

NET = """g (float[n, 32, 16, 16] x) => (float[n, 256, 32] y) {
    [first] a0 = Conv (x, wa) [relu] a = Relu (a0) [gate] s = Sigmoid (a) [silu] m = Mul (a, s)
    [kept] b = Conv (m, wa) [cut] r = Reshape (b, shape) [turn] t = Transpose <perm = [0, 2, 1]> (r)
    [norm] n = LayerNormalization (t, ones) [linear] l = MatMul (n, wl) [bias] o = Add (l, bl)
    [soft] q = Softmax (o) [shift] z = Add (q, half) [end] y = Exp (z)
}"""


def net():
    rng = np.random.default_rng(0)
    arrays = {
        "wa": rng.normal(0, 0.2, (32, 32, 1, 1)), "wl": rng.normal(0, 0.2, (32, 32)),
        "bl": rng.normal(0, 1, 32), "ones": np.ones(32), "half": np.full(32, 0.5),
    }  # fmt: skip
    floats = {name: array.astype(np.float32) for name, array in arrays.items()}
    return build_model(NET, shape=np.array([0, 32, 256], np.int64), **floats)


@pytest.fixture(scope="module")
def compiled():
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(0, 1, (1, 32, 16, 16)).astype(np.float32)} for _ in range(4)]
    config = CompileConfig(
        target="arm64", effort=Effort.FAST, guard=Guard(samples=0), exclude=("kept",),
        force_int8=("first", "silu", "linear"), verification=Verification(samples=1, rounds=0),
    )  # fmt: skip
    return compile_model(net(), feeds, config).model


def test_every_node_that_onnxruntime_runs_is_told(compiled):
    found = explain(compiled)
    for view in View:
        running = optimized(compiled, Options(view=view)).graph.node
        assert [fate.kernel for fate in found.fates[view]] == [node.op_type for node in running]


@pytest.mark.parametrize("view", View)
@pytest.mark.parametrize(
    ("node", "kernel", "runs", "reason"),
    [
        ("first", "QLinearConv", Runs.INT8, ""),
        ("relu", "QLinearConv", Runs.INT8, ""),  # merged into it
        ("gate", "QLinearSigmoid", Runs.INT8, ""),
        ("silu", "QLinearMul", Runs.INT8, ""),
        ("kept", "Conv", Runs.FLOAT, "excluded by 'kept'"),
        ("turn", "Transpose", Runs.MOVES, ""),
        ("norm", "LayerNormalization", Runs.FLOAT,
         "onnxruntime has no integer kernel for LayerNormalization"),
        ("linear", "MatMulIntegerToFloat", Runs.INT8, ""),
        ("bias", "Add", Runs.FLOAT, "bias of an integer layer that writes floats"),
        ("soft", "Softmax", Runs.FLOAT, "Softmax is faster in float"),
        ("shift", "Add", Runs.FLOAT, "Add with a constant, in no layer that runs int8"),
    ],
)  # fmt: skip
def test_kernels_and_reasons(compiled, view, node, kernel, runs, reason):
    fate = explain(compiled).fate(node, view)
    assert (fate.kernel, fate.runs, fate.reason) == (kernel, runs, reason)


def test_grids_are_told(compiled):
    told = explain(compiled).tensors("first")
    assert [label for label, _ in told] == ["reads", "reads", "writes"]
    assert "uint8, scale" in told[0][1]
    assert "int8, 32 scales of" in told[1][1]


def test_a_name_that_is_not_there(compiled):
    found = explain(compiled)
    with pytest.raises(ConfigError, match="no node is called 'sift'; did you mean shift"):
        found.find("sift")
    assert found.find("s*ft") == ["soft", "shift"]
    assert found.find("first") == ["first"]


def test_a_node_of_which_nothing_is_left(compiled):
    (name,) = (n.name for n in compiled.graph.node if n.name == "first.weight/dq")
    assert explain(compiled).fate(name, View.HOST) is None


def test_only_compiled_models():
    with pytest.raises(ModelError, match="was not compiled by qhv-onnx"):
        explain(net())


@pytest.fixture
def path(compiled, tmp_path):
    onnx.save(compiled, tmp_path / "net.qdq.onnx")
    return str(tmp_path / "net.qdq.onnx")


def test_the_command_explains_nodes(path, capsys):
    assert main(["explain", path, "kept", "gate"]) == 0
    out = capsys.readouterr().out
    assert "why float  excluded by 'kept'" in out
    assert "on ARM  QLinearSigmoid, int8" in out
    assert "uint8, scale" in out


def test_the_command_lists_what_computes_on_floats_or_all(path, capsys):
    assert main(["explain", path]) == 0
    short = capsys.readouterr().out
    assert main(["explain", path, "-v"]) == 0
    long = capsys.readouterr().out
    assert "LayerNormalization" in short
    assert "QLinearConv" not in short
    assert "QLinearConv" in long


def test_json_and_bad_files(path, capsys, tmp_path):
    assert main(["explain", path, "soft", "relu", "--json", "-"]) == 0
    views = json.loads(capsys.readouterr().out)["views"]
    told = [(node["node"], node["in"], node["kernel"]) for node in views["arm"]]
    assert told == [("soft", "soft", "Softmax"), ("relu", "first", "QLinearConv")]
    onnx.save(net(), tmp_path / "float.onnx")
    assert main(["explain", str(tmp_path / "float.onnx")]) == 3
    assert main(["explain", str(tmp_path / "none.onnx")]) == 2
