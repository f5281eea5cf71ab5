# SPDX-License-Identifier: Apache-2.0
"""Full placement: what has an integer kernel runs on it, and what has none is told."""

from functools import cache

import numpy as np
import pytest

from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig, Effort, Extent, Guard, Verification
from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.passes._kernelless import kernelless
from qhyvit_onnx.targets import TARGETS
from qhyvit_onnx.units import find_units
from tests.conftest import build_model
from tests.random_hybrids import CHANNELS, SIDE, random_hybrid

every_target = pytest.mark.parametrize("target", [t.name for t in TARGETS])

HYBRID = """
g (float[1, 3, 8, 8] x) => (float[1, 10] y) {
    [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w_stem)
    g1 = Sigmoid (a)
    [silu] s = Mul (a, g1)
    [depthwise] d = Conv <group = 16, pads = [1, 1, 1, 1]> (s, w_deep)
    [leaky] l = LeakyRelu (d)
    [squeeze] p = GlobalAveragePool (l)
    [excite] e = Conv (p, w_point)
    [gate] g2 = Sigmoid (e)
    [scale] m = Mul (l, g2)
    f = Reshape (m, tokens)
    t = Transpose <perm = [0, 2, 1]> (f)
    [norm] n = LayerNormalization (t, gamma)
    [query] q = MatMul (n, w_q)
    [key] k = MatMul (n, w_k)
    kt = Transpose <perm = [0, 2, 1]> (k)
    [qk] h = MatMul (q, kt)
    [soft] o = Softmax (h)
    [av] v = MatMul (o, n)
    [sum] r = Add (v, t)
    [both] c = Concat <axis = -1> (r, t)
    [mean] u = ReduceMean <axes = [1], keepdims = 0> (c)
    [head] y = Gemm (u, w_head)
}
"""
WEIGHTS = {
    "w_stem": (16, 3, 3, 3),
    "w_deep": (16, 1, 3, 3),
    "w_point": (16, 16, 1, 1),
    "w_q": (16, 16),
    "w_k": (16, 16),
    "w_head": (32, 10),
}
UNITS = {
    "stem": "QLinearConv",
    "silu": "QLinearMul",
    "depthwise": "QLinearConv",
    "leaky": "QLinearLeakyRelu",
    "squeeze": "QLinearGlobalAveragePool",
    "excite": "QLinearConv",
    "gate": "QLinearSigmoid",
    "scale": "QLinearMul",
    "query": "QLinearMatMul",
    "key": "QLinearMatMul",
    "qk": "QLinearMatMul",
    "soft": "QLinearSoftmax",
    "av": "QLinearMatMul",
    "sum": "QLinearAdd",
    "both": "QLinearConcat",
    "head": "QGemm",
}
OFF = Guard(samples=0)


@pytest.fixture(scope="module")
def compiled():
    """Return a function: settings -> what the hybrid compiles to."""
    rng = np.random.default_rng(6)
    arrays = {
        name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in WEIGHTS.items()
    }
    arrays |= {"gamma": np.ones(16, np.float32), "tokens": np.int64([0, 16, 64])}
    model = build_model(HYBRID, **arrays)
    feeds = [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(6)]

    def run(**settings):
        settings = {"placement": Extent.FULL, "guard": OFF} | settings
        verification = Verification(samples=4, rounds=0)
        config = CompileConfig(effort=Effort.FAST, verification=verification, **settings)
        return compile_model(model, feeds, config)

    return run


@pytest.fixture(scope="module")
def full(compiled):
    """Return a function: target -> what the hybrid compiles to, made once."""
    return cache(lambda target: compiled(target=target))


@every_target
def test_every_unit_runs_on_its_integer_kernel(full, target):
    report = full(target).report
    assert {unit.name: unit.kernel for unit in report.units} == UNITS
    assert report.replay.differing == []
    assert report.replay.unreplayed == {}
    # twenty roundings to 8 bits, -38 dB each and none amplified much: a hundredth at most
    assert report.outputs[0].sqnr_db > 20.0


def test_fast_leaves_what_is_faster_in_float(compiled):
    report = compiled(target="arm64", placement=Extent.FAST).report
    left = {unit.name: unit.reason for unit in report.units if not unit.int8}
    assert {"stem", "soft"} <= set(left)
    assert left["soft"] == "Softmax is faster in float"
    assert told(report) == {}


def test_two_runs_give_the_same_bytes(compiled, full):
    first, second = full("arm64").model, compiled(target="arm64").model
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def test_the_guard_and_exclude_still_rule(compiled):
    strict = Guard(max_noise=1e-9, max_share=0.2)
    report = compiled(target="arm64", guard=strict, exclude=("soft",)).report
    left = {unit.name: unit.reason for unit in report.units if not unit.int8}
    assert left.pop("soft") == "excluded by 'soft'"
    assert 0 < len(left) < 15  # what is cheap in float, up to a fifth of what int8 saves
    assert all(reason.startswith("sensitive: ") for reason in left.values())


def test_fewer_bits_keep_every_kernel(compiled):
    report = compiled(target="arm64", precision="w4a4").report
    assert {unit.name: unit.kernel for unit in report.units} == UNITS


def told(report):
    return next(item.misses for item in report.passes if item.name == "place")


def test_what_has_no_kernel_is_told(full):
    assert told(full("arm64").report) == {
        "LayerNormalization: onnxruntime has no integer kernel": 1,
        "ReduceMean: onnxruntime has no integer kernel": 1,
    }


def test_a_softmax_over_one_element_stays_float(build):
    body = "[one] a = Softmax <axis = 1> (x) [more] y = Softmax <axis = 2> (a)"
    model = build(f"g (float[2, 1, 6] x) => (float[2, 1, 6] y) {{ {body} }}")
    feeds = [{"x": np.random.default_rng(0).standard_normal((2, 1, 6)).astype(np.float32)}]
    config = CompileConfig(placement=Extent.FULL, target="arm64", guard=OFF, effort=Effort.FAST)
    units = {unit.name: unit for unit in compile_model(model, feeds, config).report.units}
    assert units["one"].reason == "QLinearSoftmax overflows on a single element"
    assert units["more"].kernel == "QLinearSoftmax"


@pytest.mark.parametrize("size", [1e-2, 1e-9])
@pytest.mark.parametrize("exclude", [(), ("mean",)])
def test_an_average_of_nothing_runs(build, run_model, size, exclude):
    # Behind a norm the mean of every channel is nothing, up to rounding. On a grid as fine as that
    # the integer kernel would stop, which onnxruntime takes even where the pool was left float.
    body = """
        n = InstanceNormalization (x, one, shift) [point] c = Conv (n, w)
        [mean] p = GlobalAveragePool (c) [head] y = Conv (p, w)
    """
    model = build(
        f"g (float[1, 4, 8, 8] x) => (float[1, 4, 1, 1] y) {{ {body} }}",
        one=np.ones(4, np.float32), shift=np.full(4, size, np.float32), w=(4, 4, 1, 1),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 4, 8, 8)).astype(np.float32)} for _ in range(3)]
    config = CompileConfig(
        placement=Extent.FULL, target="arm64", guard=OFF, effort=Effort.FAST, exclude=exclude
    )
    emitted = compile_model(model, feeds, config).model
    for feed in feeds:
        (want,), (got,) = (run_model(item, feed) for item in (model, emitted))
        # maps reach 8: a clip of their tails by a tenth moves an average of 64 by some hundredths
        assert np.abs(want - got).max() < 0.1


def test_a_spelled_out_function_is_told_once(build):
    body = """
        c = Add (x, three) k = Clip (c, none, six) m = Mul (x, k) [last] n = Div (m, six)
        [twice] t = Add (n, n) [shifted] s = Add (t, one) [gate] y = HardSigmoid (s)
    """
    numbers = {"three": 3, "six": 6, "none": 0, "one": 1}
    arrays = {name: np.float32(number) for name, number in numbers.items()}
    graph = import_graph(build(f"g (float[2, 8] x) => (float[2, 8] y) {{ {body} }}", **arrays))
    assert kernelless(graph, find_units(graph)) == {
        "last": "HardSwish: onnxruntime has no integer kernel",
        "twice": "Add: not in a form that an integer kernel takes",
        "shifted": "Add with a constant: left float",
        "gate": "HardSigmoid: onnxruntime has no integer kernel",
    }


def test_what_counts_and_moves_is_not_told(build):
    body = """
        n = Shape (x) r = Reshape (x, n) f = ReduceMax <keepdims = 0> (n) g = Cast <to = 1> (f)
        [kept] y = Exp (r)
    """
    graph = import_graph(build(f"g (float[2, 8] x) => (float[2, 8] y, float g) {{ {body} }}"))
    graph.tensors()["n"].dtype = graph.tensors()["f"].dtype = np.dtype(np.int64)
    assert set(kernelless(graph, find_units(graph))) == {"kept", graph.nodes[3].name}


@pytest.mark.parametrize("seed", [2, 5, 9])
def test_random_hybrids_leave_nothing_float(seed):
    text, arrays = random_hybrid(seed)
    rng = np.random.default_rng(seed)
    feeds = [{"x": rng.standard_normal((1, CHANNELS, SIDE, SIDE)).astype(np.float32)}] * 2
    config = CompileConfig(
        placement=Extent.FULL, target="arm64", guard=OFF, effort=Effort.FAST,
        verification=Verification(samples=1, rounds=0),
    )  # fmt: skip
    report = compile_model(build_model(text, **arrays), feeds, config).report  # audits as well
    left = {unit.kind for unit in report.units if not unit.int8}
    assert left <= {"gelu"}  # where one on integers would err too much
    assert report.replay.differing == []
