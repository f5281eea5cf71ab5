# SPDX-License-Identifier: Apache-2.0
"""compile_model end to end: small hybrids in text, every target, and models with odd corners."""

import json

import numpy as np
import onnx
import pytest

from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig, Guard, Verification
from qhyvit_onnx.errors import ConfigError, DataError, ModelError
from qhyvit_onnx.pipeline import Watcher, default_pipeline
from qhyvit_onnx.runtime import Arithmetic, Options, Session
from qhyvit_onnx.targets import TARGETS

every_target = pytest.mark.parametrize("target", [target.name for target in TARGETS])
CONV = "Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]>"
HYBRID = f"""
hybrid (float[N, 3, 32, 32] image) => (float[N, 10] logits) {{
    [stem] a0 = Conv <strides = [2, 2], pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (image, ws, bs)
    [stem_gate] g0 = Sigmoid (a0) [stem_silu] a = Mul (a0, g0)
    [expand] e0 = Conv (a, we) [expand_relu] e = Relu (e0)
    [depthwise] d0 = Conv <group = 64, strides = [2, 2], pads = [1, 1, 1, 1]> (e, wd)
    [depthwise_relu] d = Relu (d0)
    [project] p = {CONV} (d, wp)
    [inner] i = {CONV} (p, wi)
    [residual] r = Add (p, i)
    [flatten] f = Reshape (r, tokens) [turn] t = Transpose <perm = [0, 2, 1]> (f)
    [norm] n = LayerNormalization <epsilon = 0.00001> (t, gamma, beta)
    [q] q = MatMul (n, wq) [k] k = MatMul (n, wk) [v] v = MatMul (n, wv)
    [kt] kt = Transpose <perm = [0, 2, 1]> (k)
    [qk] s0 = MatMul (q, kt) [scale] s = Mul (s0, factor) [softmax] m = Softmax (s)
    [av] o = MatMul (m, v) [proj] u0 = MatMul (o, wo) [proj_bias] u = Add (u0, bo)
    [skip] x = Add (t, u)
    [back] y = Transpose <perm = [0, 2, 1]> (x) [map] z = Reshape (y, map)
    [fuse] w = {CONV} (z, wf)
    [pool] h = GlobalAveragePool (w) [flat] c = Flatten (h)
    [head] logits = Gemm <transB = 1> (c, wh, bh)
}}
"""
NORMAL = {
    "ws": (32, 3, 3, 3), "bs": (32,), "we": (64, 32, 1, 1), "wd": (64, 1, 3, 3),
    "wp": (64, 64, 3, 3), "wi": (64, 64, 3, 3), "wf": (96, 64, 3, 3), "wh": (10, 96), "bh": (10,),
    **dict.fromkeys(("wq", "wk", "wv", "wo"), (64, 64)), "bo": (64,),
}  # fmt: skip
FIXED = {
    "gamma": np.ones(64, np.float32), "beta": np.zeros(64, np.float32),
    "factor": np.float32(0.125), "tokens": np.int64([0, 64, 64]), "map": np.int64([0, 64, 8, 8]),
}  # fmt: skip
QUICK = Verification(samples=4, rounds=0)


def hybrid_model(build):
    """Return the net with weights that keep the variance of what they multiply."""
    rng = np.random.default_rng(42)
    drawn = {
        name: (rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))).astype(np.float32)
        for name, shape in NORMAL.items()
    }
    model = build(HYBRID, **drawn, **FIXED)
    model.metadata_props.add(key="classes", value="ten")
    return model


@pytest.fixture
def hybrid(build):
    return hybrid_model(build)


def images(count, shape=(3, 32, 32), name="image", seed=0):
    """Return smooth pictures, as photographs are: sums of a few waves."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : shape[1], 0 : shape[2]] / shape[1]
    waves = rng.uniform(-6, 6, (count, shape[0], 4, 2))
    phases = rng.uniform(0, 6.3, (count, shape[0], 4))
    angle = np.einsum("ncwd,dxy->ncwxy", waves, np.stack([rows, columns]))
    x = np.sin(angle + phases[..., None, None]).sum(axis=2)
    return [{name: picture[None].astype(np.float32)} for picture in x]


@every_target
def test_a_hybrid_compiles(hybrid, target):
    config = CompileConfig(target=target, calib_samples=8, verification=QUICK)
    compiled = compile_model(hybrid, images(12), config)
    report = compiled.report
    onnx.checker.check_model(compiled.model, full_check=True)
    assert report.target == target
    assert report.held_back
    assert report.arithmetic in {str(a) for a in Arithmetic}
    # some twenty roundings to 8 bits, -38 dB each, of which attention and pooling average many
    assert report.outputs[0].sqnr_db > 23
    assert report.outputs[0].samples == 4
    int8 = {unit.name for unit in report.units if unit.int8}
    assert {"inner", "fuse"} <= int8  # the large ones: the others are small here
    assert target != "arm64" or {"expand", "depthwise", "project"} <= int8
    assert not {unit.name for unit in report.units if unit.kind == "softmax"} & int8
    assert all(unit.kernel for unit in report.units if unit.int8)
    assert all(unit.reason and not unit.kernel for unit in report.units if not unit.int8)
    assert [bridge.direction for bridge in report.bridges] == ["in", "out"]
    assert report.bytes_after < 0.6 * report.bytes_before
    assert report.latency is None
    assert report.data.samples == 8
    assert report.data.deployable
    assert report.passes[0].name == "normalise"
    json.loads(report.model_dump_json())
    extra = {p.key: p.value for p in compiled.model.metadata_props}
    assert extra["classes"] == "ten"
    assert extra["qhyvit_onnx.target"] == target
    assert json.loads(extra["qhyvit_onnx.config"])["calib_samples"] == 8


@every_target
def test_the_emitted_model_runs_any_batch(hybrid, target):
    config = CompileConfig(target=target, verification=QUICK)
    compiled = compile_model(hybrid, images(6), config)
    options = Options(arithmetic=Arithmetic.EXACT)
    float_session, session = Session(hybrid), Session(compiled.model, options)
    batch = {"image": np.concatenate([f["image"] for f in images(5, seed=1)])}
    want, got = float_session.run(batch)["logits"], session.run(batch)["logits"]
    alone = np.concatenate([session.run(f)["logits"] for f in images(5, seed=1)])
    assert got.shape == (5, 10)
    # the same codes; float layers in between may sum in another order and cross a rounding
    np.testing.assert_allclose(got, alone, atol=0.05 * np.abs(want).max())
    assert np.abs(got - want).max() < 0.25 * np.abs(want).max()


def test_equal_inputs_give_equal_bytes(build):
    config = CompileConfig(target="arm64", verification=QUICK)
    first, second = (
        compile_model(hybrid_model(build), images(6), config).model.SerializeToString(
            deterministic=True
        )
        for _ in range(2)
    )
    assert first == second


def test_the_input_is_never_changed(hybrid):
    before = hybrid.SerializeToString(deterministic=True)
    compile_model(hybrid, images(2), CompileConfig(target="arm64", verification=QUICK))
    assert hybrid.SerializeToString(deterministic=True) == before


def test_without_data_it_is_a_first_look(hybrid):
    config = CompileConfig(target="arm64", calib_samples=3, verification=QUICK)
    compiled = compile_model(hybrid, None, config)
    assert not compiled.report.data.deployable
    assert compiled.report.data.kind == "bundled images"
    stamp = {p.key: p.value for p in compiled.model.metadata_props}["qhyvit_onnx.deployable"]
    assert stamp == "first look, not for deployment"


def test_a_file_is_compiled_as_the_model_in_it(hybrid, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(hybrid, path)
    config = CompileConfig(target="arm64", verification=QUICK)
    from_file, from_memory = (
        compile_model(given, images(2), config).model for given in (path, hybrid)
    )
    assert from_file == from_memory
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_compiled_model_is_refused(hybrid):
    config = CompileConfig(target="arm64", verification=QUICK)
    compiled = compile_model(hybrid, images(2), config).model
    with pytest.raises(ModelError, match="quantized already"):
        compile_model(compiled, images(2), config)


def test_a_compiled_model_without_int8_is_refused(build):
    model = build("g (float[1, 8] x) => (float[1, 8] y) { y = Tanh (x) }")
    data = [{"x": np.ones((1, 8), np.float32)}]
    config = CompileConfig(target="arm64", verification=QUICK)
    compiled = compile_model(model, data, config)
    assert compiled.report.int8_units == 0
    with pytest.raises(ModelError, match="already compiled"):
        compile_model(compiled.model, data, config)


def test_exclude_reaches_the_report(hybrid):
    config = CompileConfig(target="arm64", exclude=("in*", "head"), verification=QUICK)
    units = {u.name: u for u in compile_model(hybrid, images(2), config).report.units}
    assert units["inner"].reason == "excluded by 'in*'"
    assert not units["head"].int8
    with pytest.raises(ConfigError, match="matches no node"):
        compile_model(hybrid, images(2), CompileConfig(exclude=("nowhere",), verification=QUICK))


@pytest.mark.parametrize(
    ("data", "kind", "word"),
    [
        ([], DataError, "."),
        ([{"picture": np.ones((1, 3, 32, 32), np.float32)}], DataError, "image"),
        ([{"image": np.ones((1, 3, 16, 16), np.float32)}], DataError, "image"),
        ([{"image": np.full((1, 3, 32, 32), np.nan, np.float32)}], ModelError, "NaN"),
    ],
    ids=["none", "name", "shape", "nan"],
)
def test_data_that_cannot_be_used(hybrid, data, kind, word):
    with pytest.raises((kind, ModelError, DataError), match=word):
        compile_model(hybrid, data, CompileConfig(target="arm64", verification=QUICK))


def test_an_unknown_target(hybrid):
    with pytest.raises(ConfigError, match="'mips' is not known"):
        compile_model(hybrid, images(1), CompileConfig(target="mips"))


def test_the_watcher_hears_everything(hybrid):
    heard = []

    class Listener(Watcher):
        def opened(self, calibration, held_back, target):
            heard.append(("opened", len(calibration), len(held_back), target.name))

        def finished(self, step, state):
            heard.append(step.name)

    config = CompileConfig(target="arm64", calib_samples=2, verification=QUICK)
    compile_model(hybrid, images(5), config, watcher=Listener())
    assert heard[0] == ("opened", 2, 3, "arm64")
    assert heard[1:] == [item.name for item in default_pipeline(config, TARGETS[0])]


# Models with odd corners: whatever is not understood stays float and keeps working.

ODD = {
    "two inputs, one of whole numbers": (
        """g (float[1, 64, 8, 8] x, int64[1, 4] ids) => (float[1, 4, 64] y, int64[1, 4] z) {
            a = CONV (x, w) r = Relu (a) p = GlobalAveragePool (r) f = Flatten (p)
            e = Gather (table, ids) m = MatMul (e, v) y = Add (m, f) z = Add (ids, ids)
        }""",
        {"w": (64, 64, 3, 3), "table": (9, 64), "v": (64, 64)},
    ),
    "a branch": (
        """g (float[1, 64, 8, 8] x, bool flag) => (float[1, 64, 8, 8] y) {
            a = CONV (x, w) r = Relu (a)
            b = If (flag) <
                then_branch = yes () => (float[1, 64, 8, 8] c) { c = Neg (r) },
                else_branch = no () => (float[1, 64, 8, 8] d) { d = Abs (r) }
            >
            y = CONV (b, w)
        }""",
        {"w": (64, 64, 3, 3)},
    ),
    "a branch that alone reads a layer": (
        """g (float[1, 64, 8, 8] x, bool flag) => (float[1, 64, 8, 8] y) {
            a = CONV (x, w)
            b = If (flag) <
                then_branch = yes () => (float[1, 64, 8, 8] c) { c = Relu (a) },
                else_branch = no () => (float[1, 64, 8, 8] d) { d = Identity (k) }
            >
            y = CONV (b, w)
        }""",
        {"w": (64, 64, 3, 3), "k": 20 * np.ones((1, 64, 8, 8), np.float32)},
    ),
    "a layer inside a branch": (
        """g (float[1, 64, 8, 8] x, bool flag) => (float[1, 64, 8, 8] y) {
            a = CONV (x, w)
            y = If (flag) <
                then_branch = yes () => (float[1, 64, 8, 8] c) { c = CONV (a, w) },
                else_branch = no () => (float[1, 64, 8, 8] d) { d = Relu (a) }
            >
        }""",
        {"w": (64, 64, 3, 3)},
    ),
    "operators we do not know": (
        """g (float[1, 64, 8, 8] x) => (float[1, 64, 8, 8] y, float[a] s) {
            a = CONV (x, w)
            i = LpNormalization <axis = 1> (a)
            t, n = TopK <axis = 3> (i, eight)
            c = CONV (t, w)
            y = Celu (c) f = NonZero (c) u = Cast <to = 1> (f) s = ReduceSum <keepdims = 0> (u, ax)
        }""",
        {"w": (64, 64, 3, 3), "eight": np.int64([8]), "ax": np.int64([1])},
    ),
    "shapes computed at run time": (
        """g (float[N, 64, H, W] x) => (float[N, K, 64] y) {
            a = CONV (x, w)
            s = Shape (a)
            n = Slice (s, zero, two) m = Concat <axis = 0> (n, rest)
            r = Reshape (a, m) t = Transpose <perm = [0, 2, 1]> (r) y = MatMul (t, v)
        }""",
        {"w": (64, 64, 3, 3), "v": (64, 64), "zero": np.int64([0]), "two": np.int64([2]),
         "rest": np.int64([-1])},
    ),
    "an input that is an output": (
        "g (float[1, 64, 8, 8] x) => (float[1, 64, 8, 8] y, float[1, 64, 8, 8] x) "
        "{ y = CONV (x, w) }",
        {"w": (64, 64, 3, 3)},
    ),
    "an output read twice": (
        "g (float[1, 64, 8, 8] x) => (float[1, 64, 8, 8] a, float[1, 64, 8, 8] y) "
        "{ a = CONV (x, w) b = CONV (a, w) c = CONV (a, w) y = Sub (b, c) }",
        {"w": (64, 64, 3, 3)},
    ),
    "an input nobody reads": (
        "g (float[1, 64, 8, 8] x, float[1, 2] spare) => (float[1, 64, 8, 8] y) { y = CONV (x, w) }",
        {"w": (64, 64, 3, 3)},
    ),
    "whole numbers only": (
        "g (int64[1, 8] x) => (int64[1, 8] y) { z = Add (x, x) y = Mul (z, x) }", {},
    ),
    "a product of whole numbers": (
        """g (int32[1, 8, 8] i, float[1, 64, 8, 8] x) => (int32[1, 8, 8] p, float[a, b, c, d] y) {
            p = MatMul (i, i) y = CONV (x, w)
        }""",
        {"w": (64, 64, 3, 3)},
    ),
    "a single matmul": (
        "g (float[1, 64, 96] x) => (float[1, 64, 96] y) { y = MatMul (x, w) }", {"w": (96, 96)},
    ),
    "nothing to quantize": ("g (float[1, 8] x) => (float[1, 8] y) { y = Tanh (x) }", {}),
    "an empty list of detections": (
        """g (float[1, 64, 8, 8] x) => (float[N, 64] y) {
            a = CONV (x, w) p = GlobalAveragePool (a) f = Flatten (p)
            none = Slice (f, zero, zero) both = Concat <axis = 0> (f, none) y = MatMul (both, v)
        }""",
        {"w": (64, 64, 3, 3), "v": (64, 64), "zero": np.int64([0])},
    ),
    "a dead ReLU6": (
        """g (float[1, 64, 8, 8] x) => (float[1, 64, 8, 8] y) {
            a = CONV (x, w, low) r = Clip (a, zero, six) y = CONV (r, w)
        }""",
        {"w": (64, 64, 3, 3), "low": np.full(64, -1e4, np.float32), "zero": np.float32(0),
         "six": np.float32(6)},
    ),
}  # fmt: skip


def drawn_feeds(model, count=3):
    rng = np.random.default_rng(5)
    sizes = {"N": 1, "H": 8, "W": 8}
    feeds = []
    for index in range(count):
        feed = {}
        for info in model.graph.input:
            tensor = info.type.tensor_type
            shape = [d.dim_value or sizes[d.dim_param] for d in tensor.shape.dim]
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            if kind == np.float32:
                feed[info.name] = rng.standard_normal(shape).astype(np.float32)
            else:
                feed[info.name] = np.full(shape, index % 3).astype(kind)
        feeds.append(feed)
    return feeds


@pytest.mark.parametrize("target", ["arm64", "x64-avx2"])
@pytest.mark.parametrize("name", ODD)
def test_odd_models_compile(build, name, target):
    text, weights = ODD[name]
    model = build(text.replace("CONV", CONV), **weights)
    feeds = drawn_feeds(model)
    shapes = {"x": (1, 64, 8, 8)} if name == "shapes computed at run time" else {}
    config = CompileConfig(
        target=target, verification=QUICK, guard=Guard(samples=1), input_shapes=shapes
    )
    compiled = compile_model(model, feeds, config)
    assert [i.name for i in compiled.model.graph.input] == [i.name for i in model.graph.input]
    assert list(compiled.model.graph.output) == list(model.graph.output)
    reference = Session(model)
    session = Session(compiled.model, Options(arithmetic=Arithmetic.EXACT))
    for feed in feeds:
        want, got = reference.run(feed), session.run(feed)
        for output, array in want.items():
            assert (got[output].dtype, got[output].shape) == (array.dtype, array.shape)
            if array.dtype == np.float32 and output != "s":
                noise = np.square(got[output].astype(np.float64) - array).sum()
                # a few roundings to 8 bits: 1 % of the energy at most
                assert noise <= 0.01 * np.square(array, dtype=np.float64).sum() + 1e-12
            elif array.dtype != np.float32:
                np.testing.assert_array_equal(got[output], array)


@pytest.mark.parametrize("name", ["a branch", "operators we do not know"])
def test_odd_models_still_have_int8_layers(build, name):
    text, weights = ODD[name]
    model = build(text.replace("CONV", CONV), **weights)
    config = CompileConfig(target="arm64", verification=QUICK, guard=Guard(samples=0))
    compiled = compile_model(model, drawn_feeds(model), config)
    assert compiled.report.int8_units == 2
