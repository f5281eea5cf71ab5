# SPDX-License-Identifier: Apache-2.0
"""InsertQdq writes what the integer kernels need: each rule is read back from the emitted graph,
and from the graph that onnxruntime runs, on this host and as an ARM build decides.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qhyvit_onnx.audit import audit
from qhyvit_onnx.config import CompileConfig, Folding, Guard, Scope
from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.facts import GRIDS, PLACEMENT, UNITS, Grids, Placement
from qhyvit_onnx.graph import MOVEMENT
from qhyvit_onnx.pipeline import default_pipeline
from qhyvit_onnx.runtime import Arithmetic, Options, Session, View, optimized
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import TARGETS, find_target
from qhyvit_onnx.units import Kind, Unit

ARM, VNNI, AVX2 = (
    find_target(name, frozenset()).with_free_int8() for name in ("arm64", "x64-vnni", "x64-avx2")
)  # small nets: speed would keep them in float
every_target = pytest.mark.parametrize(
    "target", [t.with_free_int8() for t in TARGETS], ids=[t.name for t in TARGETS]
)
arm_and_x64 = pytest.mark.parametrize("target", [ARM, AVX2], ids=lambda t: t.name)

MAP, TOKENS = "float[1, 64, 8, 8] x", "float[1, 64, 96] x"


@dataclass(frozen=True)
class Case:
    """A float model in text, and what is drawn for it."""

    head: str
    body: str
    weights: dict
    outputs: str = "float[a, b, c, d] y"
    int8: int = 2
    """Units that run int8 on every target, at least."""
    sqnr: float = 25.0
    """Least signal to noise ratio against float, in dB: every rounding of normal numbers to 8 bits
    costs about -38 dB, and a dozen of them add 11 dB."""

    @property
    def text(self):
        return f"g ({self.head}) => ({self.outputs}) {{ {self.body} }}"


CONV = "Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]>"
DEPTHWISE = "Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3], group = 64>"
W, P = (64, 64, 3, 3), (64, 64, 1, 1)
BOUNDS = {"zero": np.float32(0), "six": np.float32(6)}
OUT3, OUT2 = "float[a, b, c] y", "float[a, b] y"
ERF = {"half": np.float32(0.5), "root": np.float32(2**0.5), "unit": np.float32(1)}

CASES = {
    "conv_relu_conv": Case(
        MAP, f"a = {CONV} (x, w, b) r = Relu (a) y = Conv (r, p, c)",
        {"w": W, "p": P, "b": (64,), "c": (64,)},
    ),
    "relu6": Case(
        MAP, f"a = {CONV} (x, w) r = Clip (a, zero, six) y = Conv (r, p, c)",
        {"w": W, "p": P, "c": (64,), **BOUNDS},
    ),
    "clip_without_maximum": Case(
        MAP, f"a = {CONV} (x, w) r = Clip (a, zero) y = Conv (r, p)",
        {"w": W, "p": P, "zero": BOUNDS["zero"]},
    ),
    "clip_that_does_not_fold": Case(
        MAP, f"a = {CONV} (x, w) r = Clip (a, minus, six) y = Conv (r, p)",
        {"w": W, "p": P, "minus": np.float32(-3), "six": np.float32(6)},
    ),
    "residual": Case(
        MAP,
        f"a = {CONV} (x, w) r = Relu (a) d = {CONV} (r, v) s = Add (r, d) y = Conv (s, p, c)",
        {"w": W, "v": W, "p": P, "c": (64,)}, int8=4,
    ),
    "concat": Case(
        MAP, f"a = {CONV} (x, w) d = {CONV} (x, v) s = Concat <axis = 1> (a, d) y = Conv (s, q)",
        {"w": W, "v": W, "q": (64, 128, 1, 1)}, int8=4,
    ),
    "silu": Case(
        MAP, f"a = {CONV} (x, w) g = Sigmoid (a) m = Mul (a, g) y = Conv (m, p, c)",
        {"w": W, "p": P, "c": (64,)},
    ),
    "gelu": Case(
        MAP,
        f"a = {CONV} (x, w) d = Div (a, root) e = Erf (d) f = Add (e, unit) m = Mul (a, f)"
        " h = Mul (m, half) y = Conv (h, p, c)",
        {"w": W, "p": P, "c": (64,), **ERF},
    ),
    "depthwise": Case(
        MAP, f"a = Conv (x, p) r = Relu (a) d = {DEPTHWISE} (r, k) e = Relu (d) y = Conv (e, q)",
        {"p": P, "k": (64, 1, 3, 3), "q": P}, int8=3,
    ),
    "grouped": Case(
        MAP, "a = Conv <group = 2> (x, grouped) y = Conv (a, p)",
        {"grouped": (64, 32, 3, 3), "p": P},
    ),
    "conv_over_time": Case(
        TOKENS, "a = Conv (x, w) r = Relu (a) y = Conv (r, v, c)",
        {"w": (64, 64, 3), "v": (64, 64, 3), "c": (64,)}, OUT3,
    ),
    "shared_weight": Case(
        MAP, f"a = {CONV} (x, w, b) r = Relu (a) y = {CONV} (r, w, b)", {"w": W, "b": (64,)},
    ),
    "one_weight_two_inputs": Case(
        MAP, f"n = Abs (x) a = {CONV} (x, w) d = {CONV} (n, w) y = Sub (a, d)", {"w": W},
    ),
    "public_between": Case(
        MAP, f"a = {CONV} (x, w) y = Conv (a, p)", {"w": W, "p": P},
        "float[a, b, c, d] a, float[a, b, c, d] y",
    ),
    "public_relu": Case(
        MAP, f"a = {CONV} (x, w) r = Relu (a) y = Conv (r, p)", {"w": W, "p": P},
        "float[a, b, c, d] y, float[a, b, c, d] r",
    ),
    "pool_between": Case(
        MAP,
        f"a = {CONV} (x, w) r = Relu (a) m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)"
        f" y = {CONV} (m, v, c)",
        {"w": W, "v": W, "c": (64,)},
    ),
    "map_to_tokens": Case(
        MAP,
        f"a = {CONV} (x, w) r = Reshape (a, flat) t = Transpose <perm = [0, 2, 1]> (r)"
        " m = MatMul (t, v) y = Add (m, b)",
        {"w": W, "flat": np.int64([1, 64, 64]), "v": (64, 96), "b": (96,)}, OUT3,
    ),
    "gemm_head": Case(
        MAP, f"a = {CONV} (x, w) r = Relu (a) f = Flatten (r) y = Gemm (f, v, b)",
        {"w": W, "v": (4096, 64), "b": (64,)}, OUT2, int8=1,
    ),
    "relu6_gemm_head": Case(
        MAP,
        f"a = {CONV} (x, w) r = Clip (a, zero, six) f = Flatten (r)"
        " y = Gemm <transB = 1> (f, v, b)",
        {"w": W, "v": (64, 4096), "b": (64,), **BOUNDS}, OUT2, int8=1,
    ),
    "average_head": Case(
        MAP, f"a = {CONV} (x, w) p = GlobalAveragePool (a) f = Flatten (p) y = Gemm (f, v, b)",
        {"w": W, "v": (64, 10), "b": (10,)}, OUT2, int8=1,
    ),
    "gemms": Case(
        "float[64, 96] x", "a = Gemm (x, w, b) r = Relu (a) y = Gemm <transB = 1> (r, v, c)",
        {"w": (96, 128), "b": (128,), "v": (64, 128), "c": (1, 64)}, OUT2,
    ),
    "gemm_to_gemm": Case(
        "float[64, 96] x", "a = Gemm (x, w) y = Gemm <transB = 1> (a, v, c)",
        {"w": (96, 128), "v": (64, 128), "c": (64,)}, OUT2,
    ),
    "matmuls": Case(
        TOKENS, "a = MatMul (x, w) d = Add (b, a) e = MatMul (d, v) y = Add (e, c)",
        {"w": (96, 96), "b": (96,), "v": (96, 96), "c": (96,)}, OUT3, int8=1,
    ),
    "matmuls_any_batch": Case(
        "float[N, 64, 96] x", "a = MatMul (x, w) d = Add (b, a) e = MatMul (d, v) y = Add (e, c)",
        {"w": (96, 96), "b": (96,), "v": (96, 96), "c": (1, 1, 96)}, OUT3,
    ),
    "matmul_of_matrices": Case(
        "float[N, 96] x", "a = MatMul (x, w) d = Add (b, a) y = MatMul (d, v)",
        {"w": (96, 96), "b": (96,), "v": (96, 96)}, OUT2,
    ),
    "matmul_of_a_vector": Case(
        "float[96] x", "a = MatMul (x, w) d = Add (b, a) y = MatMul (d, v)",
        {"w": (96, 96), "b": (96,), "v": (96, 96)}, "float[a] y", int8=0,
    ),
    "matmul_of_five_dims": Case(
        "float[1, 2, 3, 64, 96] x", "a = MatMul (x, w) d = Add (b, a) y = MatMul (d, v)",
        {"w": (96, 96), "b": (96,), "v": (96, 96)}, "float[a, b, c, d, e] y",
    ),
    "matmul_of_stacked_weights": Case(
        "float[2, 64, 96] x", "a = MatMul (x, w) y = MatMul (a, w)", {"w": (2, 96, 96)}, OUT3,
    ),
    "attention": Case(
        TOKENS,
        """
        q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv)
        k4 = Transpose <perm = [0, 2, 1]> (k)
        s = MatMul (q, k4) t = Mul (s, scale) p = Softmax (t) o = MatMul (p, v)
        y = MatMul (o, wo)
        """,
        {**dict.fromkeys(("wq", "wk", "wv", "wo"), (96, 96)), "scale": np.float32(0.001)}, OUT3,
        int8=1,
    ),
    "mobilevit": Case(
        "float[1, 64, 96] x, float[1, 64, 96] before",
        """
        n = LayerNormalization (x, g, h)
        u = MatMul (n, wqkv) qkv = Add (b, u)
        five = Reshape (qkv, heads) apart = Transpose <perm = [2, 0, 3, 1, 4]> (five)
        q5, k5, v5 = Split <axis = 0> (apart, thirds)
        q = Squeeze (q5, first) k = Squeeze (k5, first) v = Squeeze (v5, first)
        kt = Transpose <perm = [0, 1, 3, 2]> (k)
        s = MatMul (q, kt) t = Mul (s, scale) p = Softmax (t) o = MatMul (p, v)
        together = Transpose <perm = [0, 2, 1, 3]> (o) flat = Reshape (together, tokens)
        w = MatMul (flat, wo) y = Add (before, w)
        """,
        {"g": np.ones(96, np.float32), "h": np.zeros(96, np.float32), "wqkv": (96, 288),
         "b": (288,), "wo": (96, 96), "scale": np.float32(0.01),
         "heads": np.int64([1, 64, 3, 4, 24]), "thirds": np.int64([1, 1, 1]),
         "first": np.int64([0]), "tokens": np.int64([1, 64, 96])}, OUT3,
    ),
    "attention_beside_layers": Case(
        TOKENS,
        """
        q = MatMul (x, wq) k = MatMul (x, wk)
        k4 = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, k4)
        m = MatMul (q, wv) n = MatMul (k, wo) d = Add (m, n)
        y = Concat <axis = 2> (s, d)
        """,
        dict.fromkeys(("wq", "wk", "wv", "wo"), (96, 96)), OUT3, int8=4,
    ),
    "product_of_maps": Case(
        MAP, f"a = {CONV} (x, w) d = {CONV} (x, v) y = MatMul (a, d)", {"w": W, "v": W},
    ),
    "layers_that_end_in_relu": Case(
        TOKENS,
        "a = MatMul (x, w) d = Add (a, b) r = Relu (d) e = MatMul (r, v) f = Relu (e) y = Neg (f)",
        {"w": (96, 96), "b": (96,), "v": (96, 96)}, OUT3,
    ),
    "split": Case(
        MAP,
        f"a = {CONV} (x, w) d, e = Split <axis = 1> (a, halves) f = {CONV} (d, h) g = {CONV} (e, i)"
        " y = Concat <axis = 1> (f, g)",
        {"w": W, "halves": np.int64([32, 32]), "h": (64, 32, 3, 3), "i": (64, 32, 3, 3)}, int8=1,
    ),
    "half_of_a_split": Case(
        MAP, f"a = {CONV} (x, w) d, e = Split <axis = 1> (a, halves) f = {CONV} (d, h)"
        " g = Abs (e) y = Concat <axis = 1> (f, g)",
        {"w": W, "halves": np.int64([32, 32]), "h": (64, 32, 3, 3)},
    ),
    "product_of_two_layers": Case(
        MAP, f"a = {CONV} (x, w) d = {CONV} (x, v) m = Mul (a, d) y = {CONV} (m, w)",
        {"w": W, "v": W}, int8=3,
    ),
    "float_and_int8_readers": Case(
        MAP, f"a = {CONV} (x, w) d = {CONV} (a, v) e = Abs (a) f = Tanh (a) g = Sum (e, f)"
        " y = Sub (g, d)",
        {"w": W, "v": W},
    ),
    "softmax_after_a_layer": Case(
        TOKENS, "a = MatMul (x, w) t = Mul (a, scale) p = Softmax (t) y = MatMul (p, v)",
        {"w": (96, 96), "v": (96, 96), "scale": np.float32(0.1)}, OUT3, sqnr=20,
    ),  # 96 probabilities of 0.01 each in steps of 1/256: 23 dB at best
    "normalised_tokens": Case(
        TOKENS, "n = LayerNormalization (x, g, h) a = MatMul (n, w) r = Add (x, a) "
        "m = LayerNormalization (r, g, h) y = MatMul (m, w)",
        {"g": (96,), "h": (96,), "w": (96, 96)}, OUT3, int8=0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Emitted:
    """What came out of the pass, beside what went in."""

    source: onnx.ModelProto
    model: onnx.ModelProto
    grids: Grids
    placement: Placement
    units: dict[str, Unit]
    feeds: list

    @property
    def constants(self):
        return {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}

    @property
    def producers(self):
        return {name: node for node in self.model.graph.node for name in node.output}

    @property
    def readers(self):
        found = defaultdict(list)
        for node in self.model.graph.node:
            for name in node.input:
                found[name].append(node)
        return found

    def ops(self):
        return [node.op_type for node in self.model.graph.node]

    def kinds(self):
        return [self.units[name].kind for name in self.placement.int8]

    def node(self, output):
        """Return the node that writes a tensor of the float model."""
        return self.producers[output]


def drawn_feeds(model, count=4, scale=1.0, shift=0.0):
    rng = np.random.default_rng(5)
    shapes = {
        info.name: [d.dim_value or 2 for d in info.type.tensor_type.shape.dim]
        for info in model.graph.input
    }
    return [
        {n: (scale * rng.standard_normal(s) + shift).astype(np.float32) for n, s in shapes.items()}
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def kept():
    """Return what was emitted already: several laws look at the same models."""
    return {}


@pytest.fixture
def emit(build, kept):
    """Return a function: case, target -> what every pass up to InsertQdq made of it."""

    def run(case, target, exclude=(), **draw):
        if not isinstance(case, str):
            return made(case, target, exclude, draw)
        key = (case, target.name, exclude, tuple(sorted(draw.items())))
        if key not in kept:
            kept[key] = made(CASES[case], target, exclude, draw)
        return kept[key]

    def made(case, target, exclude, draw):
        model = case if isinstance(case, onnx.ModelProto) else build(case.text, **case.weights)
        feeds = drawn_feeds(model, **draw)
        off = Folding(scope=Scope.OFF)  # else other constants than the case has
        config = CompileConfig(exclude=exclude, guard=Guard(samples=0), folding=off)
        state = State(model, config, Feeds.of(feeds))
        for item in default_pipeline(config, target):
            if item.name == "verify":
                break
            item.run(state)
        units = {unit.name: unit for unit in state.get(UNITS)}
        return Emitted(model, state.model(), state.get(GRIDS), state.get(PLACEMENT), units, feeds)

    return run


def quality(reference, candidate, feeds):
    """Return the signal to noise ratio of every output together, in dB of energy."""
    signal = noise = 0.0
    for feed in feeds:
        want, got = reference.run(feed), candidate.run(feed, reference.outputs)
        for name, array in want.items():
            signal += float(np.square(array, dtype=np.float64).sum())
            noise += float(np.square(array.astype(np.float64) - got[name]).sum())
    return 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))


def check_runs(found: Emitted, target: Target, sqnr: float = Case.sqnr):
    """Hold the emitted model to the checker, to both audits, to float and to its own meaning."""
    onnx.checker.check_model(found.model, full_check=True)
    for view in View:
        audit(found.model, found.units.values(), found.placement.int8, view)
    exact = Session(found.model, Options(arithmetic=Arithmetic.EXACT))
    plain = Session(found.model, Options(fuse_qdq=False))
    assert quality(Session(found.source), exact, found.feeds) > sqnr
    # integer kernels against Q and DQ as written: now and then one code differs (facts: up to
    # 2e-4 of the outputs of a layer), which layers behind it spread; wrong scales are far off
    assert quality(plain, exact, found.feeds) > 38
    if target.pair_limit:
        stock = Session(found.model)  # saturates on AVX2 unless the weights were kept from it
        assert quality(exact, stock, found.feeds) > 60


@every_target
@pytest.mark.parametrize("name", CASES)
def test_keeps_the_function_on_the_kernels_it_was_placed_on(emit, name, target):
    found = emit(name, target)
    assert len(found.placement.int8) >= CASES[name].int8, found.placement.reasons
    check_runs(found, target, CASES[name].sqnr)


@arm_and_x64
@pytest.mark.parametrize("name", CASES)
def test_law_of_activations(emit, name, target):
    found = emit(name, target)
    constants, readers = found.constants, found.readers
    for node in found.model.graph.node:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"} or node.input[0] in constants:
            continue
        scale, zero = (constants[name] for name in node.input[1:])
        assert (scale.dtype, zero.dtype) == (np.float32, np.uint8)
        assert scale.ndim == 0 or len(set(scale.tolist())) == 1  # a vector hides a DQ from ORT
        assert scale.ndim == zero.ndim
        if node.op_type == "QuantizeLinear":
            quantizers = [r for r in readers[node.input[0]] if r.op_type == "QuantizeLinear"]
            assert len(quantizers) == 1
            restorers = [r for r in readers[node.output[0]] if r.op_type == "DequantizeLinear"]
            assert len(restorers) == len(readers[node.output[0]])
            own = [r for r in restorers if not _gates(r, readers)]
            assert sum(constants[r.input[1]].ndim == 0 for r in own) <= 1  # one shared DQ
            assert all(
                float(constants[r.input[1]].flat[0]) == float(scale)
                and int(constants[r.input[2]].flat[0]) == int(zero) for r in own
            )  # fmt: skip


def _gates(restorer, readers):
    """Tell whether ``restorer`` is for a part of an integer GELU, and for nothing else."""
    below = [node.op_type for node in readers[restorer.output[0]]]
    name = restorer.output[0]
    return (name.endswith("_dq_Sigmoid") and below == ["Sigmoid"]) or (
        name.endswith("_factor_dq_Mul") and below == ["Mul"]
    )


@arm_and_x64
@pytest.mark.parametrize("name", CASES)
def test_law_of_weights_and_biases(emit, name, target):
    found = emit(name, target)
    constants, producers = found.constants, found.producers
    by_name = {node.name: node for node in found.model.graph.node}
    for name_ in found.placement.int8:
        unit = found.units[name_]
        if unit.weight is None:
            continue
        node = by_name[name_]
        dequantize = producers[node.input[1]]
        codes, scale, zero = (constants[part] for part in dequantize.input)
        assert (codes.dtype, zero.dtype, scale.dtype) == (np.int8, np.int8, np.float32)
        assert not zero.any()
        assert codes.min() >= -127
        if scale.ndim:
            axis = next(a.i for a in dequantize.attribute if a.name == "axis")
            assert axis == unit.weight_axis
            assert scale.shape == zero.shape == (codes.shape[axis],)
        else:
            assert unit.kind is Kind.MATMUL
            assert codes.ndim > 2
        for bias in (n for other in (node, *_nodes(by_name, unit)) for n in other.input[1:]):
            above = producers.get(bias)
            if above is None or above.op_type != "DequantizeLinear":
                continue
            numbers, steps, zero = (constants.get(part) for part in above.input)
            if numbers is None or numbers.dtype != np.int32:
                continue
            sx = constants[producers[node.input[0]].input[1]]
            assert not zero.any()
            np.testing.assert_array_equal(steps, np.float32(sx) * scale)
            assert np.abs(numbers.astype(np.int64)).max() < 2**31 - 1


def _nodes(by_name, unit):
    return [by_name[node.name] for node in unit.nodes if node.name in by_name]


@arm_and_x64
@pytest.mark.parametrize("name", CASES)
def test_law_of_fused_outputs(emit, name, target):
    found = emit(name, target)
    readers, public = found.readers, {out.name for out in found.model.graph.output}
    for name_ in found.placement.int8:
        unit = found.units[name_]
        last = next(n for n in found.model.graph.node if n.name == _last(unit))
        (written,) = last.output
        if any(reader.op_type == "QuantizeLinear" for reader in readers[written]):
            assert len(readers[written]) == 1
            assert written not in public
        else:  # a float result: only the kernels that can write one
            assert unit.kind in {Kind.GEMM, Kind.MATMUL, Kind.PRODUCT}
        for inner in last.input:
            before = found.producers.get(inner)
            if before is not None and before.name in {n.name for n in unit.nodes}:
                assert len(readers[inner]) == 1 or unit.kind is Kind.SILU


def _last(unit):
    if unit.kind is Kind.GELU:  # written anew
        return unit.name
    return next(n.name for n in unit.nodes if any(out is unit.output for out in n.outputs))


@arm_and_x64
@pytest.mark.parametrize(
    "name", ["pool_between", "map_to_tokens", "split", "relu6_gemm_head", "attention"]
)
def test_movement_has_equal_parameters_on_both_sides(emit, name, target):
    found = emit(name, target)
    checked = 0
    for node in found.model.graph.node:
        if node.op_type not in MOVEMENT:
            continue
        above = found.producers[node.input[0]]
        below = [r for out in node.output for r in found.readers[out]]
        if above.op_type == "DequantizeLinear" and below and below[0].op_type == "QuantizeLinear":
            assert list(above.input[1:]) == list(below[0].input[1:])
            checked += 1
    assert checked or (name == "attention" and target is not ARM)


@pytest.mark.parametrize("target", [ARM, VNNI], ids=lambda t: t.name)
@pytest.mark.parametrize("name", ["conv_relu_conv", "relu6", "clip_without_maximum"])
def test_relu_and_relu6_are_folded(emit, name, target):
    found = emit(name, target)
    quantize = found.readers["r"][0]
    scale, zero = (found.constants[n] for n in quantize.input[1:])
    assert zero == 0
    if name == "relu6":
        assert np.float32(scale) * np.float32(255) <= np.float32(6)
    for view in View:
        running = {n.op_type for n in optimized(found.model, Options(view=view)).graph.node}
        assert not running & {"Relu", "Clip", "FusedConv"}


def test_a_shared_weight_has_its_own_grid_in_each_layer(emit):
    found = emit("shared_weight", ARM)
    first, second = (found.producers[n.input[1]] for n in found.model.graph.node
                     if n.op_type == "Conv")  # fmt: skip
    assert first.input[0] != second.input[0]
    assert "w" not in found.constants  # nothing reads the float weight any more
    biases = [found.producers[n.input[2]].input[0] for n in found.model.graph.node
              if n.op_type == "Conv"]  # fmt: skip
    assert biases[0] != biases[1]


@arm_and_x64
def test_a_public_tensor_keeps_its_name_and_is_dequantized(emit, target):
    found = emit("public_between", target)
    assert [out.name for out in found.model.graph.output] == ["a", "y"]
    restore = found.node("a")
    assert restore.op_type == "DequantizeLinear"
    grid = found.grids.activations["a"]
    reference = Session(found.source).run(found.feeds[0])["a"]
    got = Session(found.model, Options(arithmetic=Arithmetic.EXACT)).run(found.feeds[0])["a"]
    # on the grid, and where the float model is, up to the layer's own rounding
    np.testing.assert_allclose(got, grid.fake(got), atol=1e-6 * np.abs(got).max())
    assert np.abs(got - reference).max() < 0.1 * np.abs(reference).max()


def test_a_residual_between_int8_layers_is_one_kernel(emit):
    found = emit("residual", AVX2)
    assert Kind.ADD in found.kinds()
    running = [n.op_type for n in optimized(found.model).graph.node]
    assert running.count("QLinearAdd") == 1
    assert running.count("DequantizeLinear") <= 1
    assert running.count("QuantizeLinear") == 1


def test_silu_on_arm_is_two_kernels(emit):
    found = emit("silu", ARM)
    assert Kind.SILU in found.kinds()
    running = [n.op_type for n in optimized(found.model, Options(view=View.ARM)).graph.node]
    assert {"QLinearSigmoid", "QLinearMul"} <= set(running)
    assert running.count("DequantizeLinear") <= 1


def test_attention_on_arm_has_integer_products(emit):
    found = emit("attention", ARM)
    assert found.kinds().count(Kind.PRODUCT) == 2
    quantize = found.readers["p"][0]
    scale, zero = (found.constants[n] for n in quantize.input[1:])
    # the softmax runs in floats: any grid from zero will do, and none needs codes above 1
    assert (quantize.op_type, int(zero)) == ("QuantizeLinear", 0)
    assert 0 < float(scale) <= np.float32(1 / 255)


def test_attention_on_x64_leaves_softmax_and_its_products_unasked(emit):
    found = emit("attention", AVX2)
    products = [n for n in found.model.graph.node if n.op_type == "MatMul"]
    assert len(products) == 6
    placed = set(found.placement.int8)
    fed_by_dq = [
        n.name for n in products
        if all(i in found.producers and found.producers[i].op_type == "DequantizeLinear"
               for i in n.input)
    ]  # fmt: skip
    assert set(fed_by_dq) <= placed  # onnxruntime fuses them whether asked or not


@every_target
def test_a_channel_of_zeros_with_a_large_bias(emit, build, target):
    rng = np.random.default_rng(0)
    weight, bias = (rng.standard_normal(s).astype(np.float32) / 10 for s in ((64, 64, 3, 3), (64,)))
    weight[5], bias[5] = 0, 300.0
    case = CASES["conv_relu_conv"]
    found = emit(build(case.text, **{**case.weights, "w": weight, "b": bias}), target)
    check_runs(found, target)
    written = next(n for n in found.model.graph.node if n.op_type == "Conv")
    codes, steps, _ = (found.constants[n] for n in found.producers[written.input[2]].input)
    found_bias = codes * steps.astype(np.float64)
    kept = found.grids.bias_of(found.units[written.name])
    # one part in a thousand: far below a step of the output
    np.testing.assert_allclose(found_bias, kept, rtol=1e-3, atol=1e-3)
    # what is corrected and learned is far below a step of the output, which is over 1
    np.testing.assert_allclose(kept, bias, atol=0.1)


FLOAT_BETWEEN = {
    "conv": f"[middle] m = {CONV} (r, v, b)",
    "conv_relu": f"[middle] n = {CONV} (r, v, b) m = Relu (n)",
    "conv_clip": f"[middle] n = {CONV} (r, v, b) m = Clip (n, zero, six)",
    "pointwise": "[middle] m = Conv (r, p)",
    "depthwise": f"[middle] m = {DEPTHWISE} (r, k, b)",
    "conv_transpose": "[middle] m = ConvTranspose (r, p, b)",
    "behind_movement": f"t = Transpose <perm = [0, 1, 3, 2]> (r) [middle] m = {CONV} (t, v, b)",
    "before_movement": f"[middle] n = {CONV} (r, v, b) m = Transpose <perm = [0, 1, 3, 2]> (n)",
    "matmul": "[middle] n = MatMul (r, s) m = Add (n, e)",
    "matmul_plain": "[middle] m = MatMul (r, s)",
    "two": f"[middle] n = {CONV} (r, v, b) [middle2] m = {CONV} (n, v, b)",
}


@every_target
@pytest.mark.parametrize("name", FLOAT_BETWEEN)
def test_a_float_layer_between_int8_layers_stays_float(emit, build, name, target):
    arrays = {"v": W, "b": (64,), "p": P, "k": (64, 1, 3, 3), "s": (8, 8), "e": (8,)}
    arrays |= {
        "zero": np.float32(0),
        "six": np.float32(20000),
    }  # most of the large channel is inside
    body = f"a = {CONV} (x, w) r = Relu (a) {FLOAT_BETWEEN[name]} y = Conv (m, q)"
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {n: a for n, a in arrays.items() if n in words}
    text = f"g ({MAP}) => (float[a, b, c, d] y) {{ {body} }}"
    # weights of which one channel is far larger: per-tensor int8 would ruin the others
    model = build(text, w=W, q=P, **used)
    for tensor in model.graph.initializer:
        if tensor.name in {"v", "p", "k", "s"}:
            array = numpy_helper.to_array(tensor).copy()
            array[0] *= 300
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    found = emit(model, target, exclude=() if name == "conv_transpose" else ("middle*",))
    assert len(found.placement.int8) == 2
    check_runs(found, target)
    running = optimized(found.model)
    middle = [n.op_type for n in running.graph.node if n.name.startswith("middle")]
    kept = [t for t in running.graph.initializer
            if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]  # fmt: skip
    assert len(kept) == 2  # the weights of the two layers that were placed int8, and no other
    assert not set(middle) & {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat"}


@pytest.mark.parametrize(
    "attributes", ["alpha = 0.5", "beta = 0.5", "transA = 1"], ids=lambda a: a.split()[0]
)
@arm_and_x64
def test_a_gemm_that_is_no_unit_stays_float(emit, build, attributes, target):
    model = build(
        "g (float[64, 64] x) => (float[a, b] y) { a = Gemm (x, w, b) r = Relu (a) "
        f"[middle] m = Gemm <{attributes}> (r, w, b) y = Gemm (m, w, b) }}",
        w=(64, 64), b=(64,),
    )  # fmt: skip
    found = emit(model, target)
    assert len(found.placement.int8) == 2
    check_runs(found, target)


ACTIVATIONS = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "HardSigmoid", "Softplus", "Exp")


@every_target
@pytest.mark.parametrize("op", ACTIVATIONS)
@pytest.mark.parametrize(
    "layer",
    ["a = Gemm (x, w, b)", "a = Gemm (x, w)", "m = MatMul (x, w) a = Add (m, b)"],
    ids=["gemm", "gemm without bias", "matmul"],
)
def test_a_float_activation_behind_a_float_result(emit, build, layer, op, target):
    # onnxruntime fuses Gemm and a float activation, and then runs the weights through DQ
    arrays = {"w": np.float32(0.05) * drawn((96, 96)), "b": np.float32(0.05) * drawn((96,))}
    used = {n: a for n, a in arrays.items() if f", {n}" in layer}
    model = build(
        f"g (float[64, 96] x) => (float[64, 96] y) {{ {layer} r = {op} (a) y = Neg (r) }}", **used
    )
    found = emit(model, target, exclude=(f"{op}_*",) if op in {"LeakyRelu", "Sigmoid"} else ())
    assert len(found.placement.int8) == 1
    check_runs(found, target)


def drawn(shape):
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


@every_target
@pytest.mark.parametrize(
    ("name", "kernel", "exclude"),
    [("gelu", "FastGelu", ("Mul_5",)), ("silu", "QuickGelu", ("Mul_2",))],
)
def test_float_activations_behind_int8_layers_still_fuse(emit, name, kernel, exclude, target):
    found = emit(name, target, exclude=exclude)
    assert found.kinds() == [Kind.CONV, Kind.POINTWISE]
    check_runs(found, target)
    for view in View:
        running = [n.op_type for n in optimized(found.model, Options(view=view)).graph.node]
        assert running.count(kernel) == 1
        assert not set(running) & {"Erf", "Sigmoid"}


def test_io_and_metadata_are_kept(emit, build):
    model = build(
        f"""<ir_version: 9, opset_import: ["": 17], producer_name: "me", model_version: 3,
             doc_string: "what it is">
        g (float[batch, 64, height, 8] second, float[batch, 64, height, 8] first)
            => (float[batch, 64, h, w] z, float[batch, 64, h2, w2] y) {{
            a = {CONV} (first, w)
            z = Relu (a)
            y = Conv (second, p)
        }}""",
        w=W, p=P,
    )  # fmt: skip
    model.metadata_props.add(key="licence", value="mine")
    model.graph.doc_string = "a graph"
    model.graph.input[0].doc_string = "an image"
    for info in model.graph.input:
        info.type.tensor_type.shape.dim[2].dim_param = "height"
    rng = np.random.default_rng(0)
    feeds = [{n: rng.standard_normal((2, 64, 8, 8)).astype(np.float32)
              for n in ("first", "second")}]  # fmt: skip
    config = CompileConfig(guard=Guard(samples=0))
    state = State(model, config, Feeds.of(feeds))
    before = model.SerializeToString(deterministic=True)
    for item in default_pipeline(config, ARM)[:-1]:
        item.run(state)
    emitted = state.model()
    assert list(emitted.graph.input) == list(model.graph.input)
    assert list(emitted.graph.output) == list(model.graph.output)
    assert list(emitted.metadata_props) == list(model.metadata_props)
    assert (emitted.doc_string, emitted.graph.doc_string) == ("what it is", "a graph")
    assert (emitted.producer_name, emitted.model_version) == ("me", 3)
    assert emitted.opset_import == model.opset_import
    assert model.SerializeToString(deterministic=True) == before
    # and the free dims are free
    Session(emitted).run({n: np.zeros((5, 64, 11, 8), np.float32) for n in ("first", "second")})


@arm_and_x64
@pytest.mark.parametrize("name", ["residual", "attention", "silu"])
def test_equal_inputs_give_equal_bytes(emit, name, target):
    first, second = (
        emit(name, target).model.SerializeToString(deterministic=True) for _ in range(2)
    )
    assert first == second


@every_target
def test_a_graph_with_nothing_to_quantize_passes_through(emit, build, target):
    model = build("g (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y) { e = Exp (x) y = Neg (e) }")
    found = emit(model, target)
    assert found.ops() == ["Exp", "Neg"]
    assert found.placement.int8 == ()
    check_runs(found, target)


@every_target
@pytest.mark.parametrize("shift", [20.0, -20.0])
def test_one_sided_inputs_stay_correct(emit, target, shift):
    found = emit("conv_relu_conv", target, shift=shift)
    onnx.checker.check_model(found.model, full_check=True)
    for view in View:
        audit(found.model, found.units.values(), found.placement.int8, view)
    exact = Session(found.model, Options(arithmetic=Arithmetic.EXACT))
    plain = Session(found.model, Options(fuse_qdq=False))
    assert quality(plain, exact, found.feeds) > 38


@every_target
def test_a_layer_fed_by_the_input_alone(emit, build, target):
    # one layer, one Q before it: the smallest graph that is quantized
    model = build("g (float[64, 96] x) => (float[64, 96] y) { y = MatMul (x, w) }", w=(96, 96))
    found = emit(model, target)
    assert len(found.placement.int8) == 1
    check_runs(found, target)


@every_target
def test_names_that_are_taken_already(emit, build, target):
    text = f"""g ({MAP}) => (float[a, b, c, d] y) {{
        [one] a = {CONV} (x, one.weight_q)
        x_q = Relu (a)
        [two] y = Conv (x_q, grid_0.scale)
    }}""".replace("one.weight_q", "wq").replace("grid_0.scale", "gs")
    model = build(text, wq=W, gs=P)
    renamed = {"wq": "one.weight_q", "gs": "grid_0.scale"}
    for tensor in model.graph.initializer:
        tensor.name = renamed[tensor.name]
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    found = emit(model, target)
    assert len(found.placement.int8) == 2
    check_runs(found, target)


def test_a_second_run_changes_nothing_more(emit):
    # what is emitted holds no unit any more: its weights are computed by DQ
    from qhyvit_onnx.graph import import_graph
    from qhyvit_onnx.units import find_units

    found = emit("conv_relu_conv", ARM)
    assert [u for u in find_units(import_graph(found.model)) if u.weight is not None] == []


@pytest.mark.parametrize(
    ("name", "target"),
    [("conv_relu_conv", ARM), ("residual", AVX2), ("mobilevit", ARM), ("mobilevit", AVX2)],
    ids=lambda value: getattr(value, "name", value),
)
def test_golden(emit, golden, name, target):
    golden(f"insert_qdq/{name}.{target.name}", emit(name, target).model)
