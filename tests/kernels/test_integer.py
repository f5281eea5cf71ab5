# SPDX-License-Identifier: Apache-2.0
"""Integer reference kernels: equal to onnxruntime bit for bit, ties and saturation included.

Every comparison is exact: a kernel that rounds once more or in another order than onnxruntime is
wrong. Shapes, strides, pads, groups, scales and zero points are drawn from seeds.
"""

import zlib

import numpy as np
import onnx
import pytest
from onnx import helper

from qhyvit_onnx.kernels.integer.convolution import conv
from qhyvit_onnx.kernels.integer.elementwise import add, mul
from qhyvit_onnx.kernels.integer.linear import gemm, matmul, matmul_sums, matmul_to_float
from qhyvit_onnx.kernels.integer.machine import Machine
from qhyvit_onnx.kernels.integer.pooling import average_pool, global_average_pool, max_pool
from qhyvit_onnx.kernels.integer.requantize import (
    Grid,
    Quantized,
    dequantize,
    quantize,
    requantize,
)
from qhyvit_onnx.kernels.integer.tables import concat, leaky_relu, logistic, sigmoid, softmax
from qhyvit_onnx.kernels.integer.window import Window, same_pads
from qhyvit_onnx.replay import host_machine
from qhyvit_onnx.runtime import Arithmetic, Options, Session

MICROSOFT = "com.microsoft"
U8, S8 = np.dtype(np.uint8), np.dtype(np.int8)
both_types = pytest.mark.parametrize("dtype", [U8, S8], ids=str)


def seeds(count):
    return pytest.mark.parametrize("seed", range(count))


def run(op, inputs, fed, dtype, domain=MICROSOFT, **attrs):
    """Return what onnxruntime writes; inputs ``fed`` are computed at run time, others constant."""
    names = ["" if x is None else f"i{at}" for at, x in enumerate(inputs)]
    arrays = {name: np.asarray(x) for name, x in zip(names, inputs, strict=True) if name}
    feeds = {names[at]: arrays[names[at]] for at in fed}
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in feeds.items()
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], domain=domain, **attrs)],
        op,
        infos,
        [helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(x, n) for n, x in arrays.items() if n not in feeds],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return Session(model, Options(threads=1, arithmetic=Arithmetic.EXACT)).run(feeds)["y"]


def assert_same(got, want):
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    np.testing.assert_array_equal(got, want)


def drawn_codes(rng, shape, dtype=U8):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def drawn_grid(rng, dtype=U8, size=None, low=-9.0, high=0.0):
    """Return a grid with a scale between two powers of two."""
    scale = np.exp2(rng.uniform(low, high, size))
    return Grid(np.asarray(scale, np.float32), np.asarray(drawn_codes(rng, size, dtype), dtype))


def literal(scale, zero, dtype=U8):
    return Grid(np.asarray(scale, np.float32), np.asarray(zero, dtype))


def every_pair(dtype):
    """Return two arrays that hold every pair of codes."""
    every = np.arange(256, dtype=np.uint8).view(dtype)
    return (x.ravel() for x in np.meshgrid(every, every))


# --- rounding -------------------------------------------------------------------------------------


def test_ties_go_to_even_and_the_ends_saturate():
    sums = np.array([1, 3, 5, -1, -3, 2**31 - 1, -(2**31)], np.int32)
    got = requantize(sums, np.float32(0.5), np.array(7, np.uint8))
    assert got.tolist() == [7, 9, 9, 7, 5, 255, 0]


def test_large_sums_are_rounded_to_float32_first():
    # with the left side at its zero point the bias is the sum; at 2**30 float32 knows every 64th
    grid = literal(2.0**-23 * 1.1, 128)
    ties = np.arange(-127, 127)[:, None] + 0.5
    near = np.rint(ties / grid.scale) + np.arange(-320, 321, 16)
    bias = near.ravel().astype(np.int32)
    out, one = literal(1.0, 128), literal(1.0, 0)
    a, b = np.full((1, 1), 128, np.uint8), np.ones((1, bias.size), np.uint8)
    got = run("QGemm", [a, *grid, b, *one, bias, *out], [0], U8)
    assert_same(got, requantize(bias[None], grid.scale, out.zero))


@both_types
def test_quantize_and_back(dtype):
    rng = np.random.default_rng(1)
    odd = [np.inf, -np.inf, np.nan, 3e38, -0.0]
    for grid in (literal(1.0, 3, dtype), literal(0.3, 100, dtype), literal(3e-5, 4, dtype)):
        ties = (np.arange(-300, 300) + 0.5) * grid.scale  # the inverse of a scale would move some
        x = np.concatenate([ties, rng.standard_normal(500) * 20, odd]).astype(np.float32)
        codes = quantize(x, grid)  # 3e38 over 3e-5 is beyond float32
        assert_same(run("QuantizeLinear", [x, *grid], [0], dtype, ""), codes)
        number = run("DequantizeLinear", [codes, *grid], [0], np.float32, "")
        assert_same(number, dequantize(Quantized(codes, grid)))


@both_types
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_grid_a_channel(dtype, axis):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4, 5, 6)).astype(np.float32)
    grid = drawn_grid(rng, dtype, x.shape[axis], high=-3)
    codes = quantize(x, grid, axis=axis)
    assert_same(run("QuantizeLinear", [x, *grid], [0], dtype, "", axis=axis), codes)
    number = run("DequantizeLinear", [codes, *grid], [0], np.float32, "", axis=axis)
    assert_same(number, dequantize(Quantized(codes, grid), axis=axis))


# --- products -------------------------------------------------------------------------------------


def drawn_weight(rng, shape, channels):
    """Return weights of one grid, or one a channel, and of either type.

    AVX2 without VNNI saturates pairs of uint8 times int8 in a node written by hand: there int8
    stays below 64, what models get beyond that is for ``test_replay.py``.
    """
    dtype = U8 if rng.random() < 0.5 else S8
    codes = drawn_codes(rng, shape, dtype)
    grid = drawn_grid(rng, dtype, channels if rng.random() < 0.6 else None)
    if rng.random() < 0.6:  # symmetric
        grid = Grid(grid.scale, np.full_like(grid.zero, 128 if dtype == U8 else 0))
    else:  # QLinearConv takes one zero point only
        grid = Grid(grid.scale, np.full_like(grid.zero, grid.zero.reshape(-1)[0]))
    return Quantized(codes if dtype == U8 else codes // 2, grid)


def roomy(rng, a, b, terms):
    """Return a grid on which a sum of ``terms`` products has some codes at both ends."""
    step = float(np.mean(a.scale) * np.mean(b.scale)) * np.sqrt(terms) * 60
    return Grid(np.asarray(step * rng.uniform(0.5, 2), np.float32), drawn_grid(rng).zero)


def drawn_window(rng, axes, *, dilated=True, ceil=False):
    kernel, strides, dilations = (
        tuple(int(v) for v in rng.integers(1, high, axes)) for high in (5, 4, 3)
    )
    pads = tuple((int(rng.integers(0, k)), int(rng.integers(0, k))) for k in kernel)
    return Window(kernel, strides, dilations if dilated else (1,) * axes, pads, ceil)


def attributes(window):
    before, after = zip(*window.pads, strict=True)
    return {"kernel_shape": window.kernel, "strides": window.strides, "pads": [*before, *after]}


def drawn_image(rng, window, channels, dtype=U8):
    """Return an image, channels last, that a window fits into."""
    spatial = [reach + int(rng.integers(0, 9)) for reach in window.reach()]
    return drawn_codes(rng, (int(rng.integers(1, 3)), *spatial, channels), dtype)


def first(image):
    return np.ascontiguousarray(np.moveaxis(image, -1, 1))


@seeds(40)
def test_conv(seed):
    rng = np.random.default_rng(seed)
    window = drawn_window(rng, 2 if seed % 2 else int(rng.integers(1, 4)))
    groups, inputs, outputs = (int(v) for v in rng.integers(1, [5, 20, 20]))
    if seed % 4 == 0:  # depthwise
        groups, inputs, outputs = int(rng.integers(2, 40)), 1, int(rng.integers(1, 3))
    x = Quantized(drawn_image(rng, window, groups * inputs), drawn_grid(rng))
    weight = drawn_weight(rng, (groups * outputs, inputs, *window.kernel), groups * outputs)
    bias = rng.integers(-30000, 30000, groups * outputs).astype(np.int32) if seed % 3 else None
    out = roomy(rng, x.grid, weight.grid, inputs * np.prod(window.kernel))
    want = conv(x, weight, bias, out, window, groups=groups)
    shared = {**attributes(window), "dilations": window.dilations, "group": groups}
    rest = [*x.grid, weight.codes, *weight.grid, *out, bias]
    assert_same(run("QLinearConv", [first(x.codes), *rest], [0], U8, "", **shared), first(want))
    shared["channels_last"] = 1
    assert_same(run("QLinearConv", [x.codes, *rest], [0], U8, **shared), want)


@seeds(24)
def test_products_of_matrices(seed):
    rng = np.random.default_rng(seed)
    rows, terms, columns = (int(v) for v in rng.integers(1, 70, 3))
    a = Quantized(drawn_codes(rng, (rows, terms)), drawn_grid(rng))
    b = drawn_weight(rng, (terms, columns), columns)
    out = roomy(rng, a.grid, b.grid, terms)
    fed = [0] if seed % 2 else [0, 3]
    flip = {"transA": seed % 2, "transB": seed // 2 % 2, "alpha": 0.37 if seed % 5 == 0 else 1.0}
    bias = rng.integers(-30000, 30000, columns).astype(np.int32) if seed % 3 else None
    given = [a.codes.T if flip["transA"] else a.codes, *a.grid]
    given += [b.codes.T if flip["transB"] else b.codes, *b.grid, bias]
    for grid, kind in ((out, U8), (None, np.float32)):
        got = run("QGemm", [*given, *(grid or ())], fed, kind, **flip)
        assert_same(got, gemm(a, b, bias, grid, alpha=flip["alpha"]))
    got = run("QLinearMatMul", [a.codes, *a.grid, b.codes, *b.grid, *out], fed, U8, "")
    assert_same(got, matmul(a, b, out))
    offset = (rng.standard_normal(columns) * 600 * out.scale).astype(np.float32)
    for addend in (None, offset):
        given = [a.codes, b.codes, a.grid.scale, b.grid.scale, a.grid.zero, b.grid.zero, addend]
        got = run("MatMulIntegerToFloat", given, [0, 1] if 3 in fed else [0], np.float32)
        assert_same(got, matmul_to_float(a, b, addend, host_machine()))


def test_product_of_stacks():
    rng = np.random.default_rng(0)
    a, b = (Quantized(drawn_codes(rng, s), drawn_grid(rng)) for s in ((3, 2, 5, 36), (2, 36, 7)))
    out = roomy(rng, a.grid, b.grid, 36)
    got = run("QLinearMatMul", [a.codes, *a.grid, b.codes, *b.grid, *out], [0, 3], U8, "")
    assert_same(got, matmul(a, b, out))


@pytest.mark.parametrize("terms", [1, 258, 259, 5000])
def test_long_sums_are_exact(terms):
    # 258 products of 255 x 255 fit into the whole numbers of float32, 259 do not
    rng = np.random.default_rng(terms)
    a, b = (Quantized(drawn_codes(rng, s), literal(1, 0)) for s in ((9, terms), (terms, 9)))
    a.codes[0], b.codes[:, 0] = 255, 255
    a.codes[0, -1] = 254  # odd sums: lost first when bits run out
    np.testing.assert_array_equal(
        matmul_sums(a, b), a.codes.astype(np.int64) @ b.codes.astype(np.int64)
    )


def test_the_accumulator_wraps_at_32_bits():
    rng = np.random.default_rng(0)
    a = Quantized(drawn_codes(rng, (5, 30)), literal(0.01, 3))
    b = Quantized(drawn_codes(rng, (30, 16)), literal(0.01, 128))
    out = literal(2.0**15 * 0.0016, 128)
    bias = np.repeat(np.array([2**31 - 1000, 1000 - 2**31], np.int64), 8).astype(np.int32)
    want = gemm(a, b, bias, out)
    assert (want[:, :8] == 0).any()  # beyond the largest sum there is the smallest
    assert_same(run("QGemm", [a.codes, *a.grid, b.codes, *b.grid, bias, *out], [0], U8), want)
    window = Window((1,), (1,), (1,), ((0, 0),))
    x = Quantized(a.codes[None], a.grid)
    weight = Quantized(np.ascontiguousarray(b.codes.T[..., None]), b.grid)
    assert_same(conv(x, weight, bias, out, window)[0], want)
    given = [x.codes, *a.grid, weight.codes, *b.grid, *out, bias]
    assert_same(run("QLinearConv", given, [0], U8, channels_last=1)[0], want)


# --- elementwise ----------------------------------------------------------------------------------

BINARY = {"QLinearAdd": add, "QLinearMul": mul}
both_ops = pytest.mark.parametrize("op", BINARY)


@both_ops
@both_types
@seeds(20)
def test_every_pair_of_codes(op, dtype, seed):
    # 65,536 pairs: enough to meet the last bit of the constant that Add folds its zero points into
    rng = np.random.default_rng(seed)
    a, b = (Quantized(x, drawn_grid(rng, dtype, low=-3, high=3)) for x in every_pair(dtype))
    high = 4.0 if op == "QLinearAdd" else 8.0
    out = drawn_grid(rng, dtype, low=high - 4, high=high)
    if seed % 4 == 0:  # powers of two: many ties
        a, b = (Quantized(x.codes, Grid(np.float32(s), x.grid.zero)) for x, s in ((a, 1), (b, 0.5)))
        out = Grid(np.float32(2.0 ** rng.integers(-2, 6)), out.zero)
    got = run(op, [a.codes, *a.grid, b.codes, *b.grid, *out], [0, 3], dtype)
    assert_same(got, BINARY[op](a, b, out, host_machine()))


@both_ops
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((8, 64, 50), (8, 64, 50)),
        ((8, 64, 50), (8, 64, 1)),
        ((8, 64, 1), (8, 64, 50)),
        ((50,), (8, 64, 50)),
        ((), (8, 64, 50)),
        ((8, 64, 1), (8, 1, 50)),
        ((8, 1, 50), (8, 64, 1)),
        ((8, 300, 1), (8, 1, 1)),
        ((8, 1, 1), (8, 300, 1)),
        ((4, 1, 9, 1), (4, 7, 1, 1)),
    ],
)
def test_broadcasting(op, left, right):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        a, b = (
            Quantized(drawn_codes(rng, s), drawn_grid(rng, low=-3, high=3)) for s in (left, right)
        )
        out = drawn_grid(rng, low=0, high=4)
        got = run(op, [a.codes, *a.grid, b.codes, *b.grid, *out], [0, 3], U8)
        assert_same(got, BINARY[op](a, b, out, host_machine()))


# scale and zero point of both operands and of the result; CRC-32 of what onnxruntime 1.31.1 for
# aarch64 writes for all 65,536 pairs (Cortex-A53 and A76 alike), and for x86-64
ON_ARM = [
    ("QLinearAdd", (0.021, 117, 0.034, 100, 0.04, 128), 1491638010, 465566675),
    ("QLinearAdd", (0.5, 0, 0.25, 3, 1.0, 7), 50243150, 1731346503),  # ties
    ("QLinearAdd", (0.03, 12, 0.00002, 250, 0.5, 9), 622616300, 3428396171),  # plain float32
    ("QLinearAdd", (1.0, 255, 3.0, 0, 0.01, 128), 4010630780, 4010630780),  # likewise
    ("QLinearAdd", (0.02, 128, 0.02, 128, 0.03, 128), 244703713, 244703713),
    ("QLinearMul", (0.021, 117, 0.034, 100, 0.1, 128), 1234790799, 1234790799),
    ("QLinearMul", (0.003, 171, 0.015, 134, 0.003, 165), 3747632823, 3014382916),
    ("QLinearMul", (0.085, 220, 0.02, 5, 0.011, 138), 1182507533, 3861711680),
]


@pytest.mark.parametrize(("op", "grids", "arm", "x86"), ON_ARM)
def test_both_machines(op, grids, arm, x86):
    first, second, out = (literal(*grids[at : at + 2]) for at in (0, 2, 4))
    codes = tuple(every_pair(U8))
    a, b = Quantized(codes[0], first), Quantized(codes[1], second)
    for machine, crc in ((Machine.ARM, arm), (Machine.X86, x86)):
        assert zlib.crc32(BINARY[op](a, b, out, machine).tobytes()) == crc


def test_add_differs_between_machines_by_one_step_at_most():
    a, b = (Quantized(x, g) for x, g in zip(
        every_pair(U8), (literal(0.021, 117), literal(0.034, 100)), strict=True
    ))  # fmt: skip
    out = literal(0.04, 128)
    gap = np.abs(np.subtract(*(add(a, b, out, m).astype(int) for m in Machine)))
    assert gap.max() == 1
    assert gap.mean() == pytest.approx(0.008, abs=0.0005)  # measured: 0.8 %


# --- tables ---------------------------------------------------------------------------------------


def test_logistic_is_close_to_the_true_function():
    x = np.linspace(-30, 30, 4001, dtype=np.float32)
    np.testing.assert_allclose(logistic(x), 1 / (1 + np.exp(-x.astype(np.float64))), atol=1e-7)


@both_types
@seeds(12)
def test_tables(dtype, seed):
    rng = np.random.default_rng(seed)
    every = np.arange(256, dtype=np.uint8).view(dtype)
    x = Quantized(every, drawn_grid(rng, dtype, low=-8, high=-1))
    fine = drawn_grid(rng, dtype, low=-9, high=-7)
    if seed % 2:
        fine = Grid(np.float32(1 / rng.integers(1, 300)), fine.zero)  # sigmoid(0) may be a tie
    got = run("QLinearSigmoid", [x.codes, *x.grid, *fine], [0], dtype)
    assert_same(got, sigmoid(x, fine))
    slope = float(np.float32(rng.uniform(-0.5, 1)))
    got = run("QLinearLeakyRelu", [x.codes, *x.grid, *fine], [0], dtype, alpha=slope)
    assert_same(got, leaky_relu(x, fine, alpha=slope))
    other = Quantized(drawn_codes(rng, 9, dtype), fine if seed % 3 else x.grid)
    parts = [x.codes, *x.grid, other.codes, *other.grid]
    got = run("QLinearConcat", [*fine, *parts], [2, 5], dtype, axis=0)
    assert_same(got, concat([x, other], fine, axis=0))


@both_types
@pytest.mark.parametrize("axis", [0, 1, -1])
@seeds(4)
def test_softmax(dtype, axis, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(v) for v in rng.integers(2, 90, 3))
    x = Quantized(drawn_codes(rng, shape, dtype), drawn_grid(rng, dtype))
    lowest = np.iinfo(dtype).min
    for scale in (1 / 256, 1 / 255) if dtype == U8 else (1 / 256,):
        out = literal(scale, lowest, dtype)
        attrs = {"axis": axis, "opset": 13}
        got = run("QLinearSoftmax", [x.codes, *x.grid, *out], [0], dtype, **attrs)
        assert_same(got, softmax(x, out, axis=axis))


# --- pooling --------------------------------------------------------------------------------------


@both_types
@seeds(10)
def test_global_average_pool(dtype, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(v) for v in rng.integers(1, [3, 20, 20, 40]))
    x = Quantized(drawn_codes(rng, shape, dtype), drawn_grid(rng, dtype))
    out = Grid(np.float32(x.grid.scale * rng.uniform(0.1, 1)), drawn_grid(rng, dtype).zero)
    want = global_average_pool(x, out)
    op = "QLinearGlobalAveragePool"
    got = run(op, [x.codes, *x.grid, *out], [0], dtype, channels_last=1)
    assert_same(got, want)
    got = run(op, [first(x.codes), *x.grid, *out], [0], dtype, channels_last=0)
    assert_same(got, first(want))


@seeds(20)
def test_average_pool(seed):
    rng = np.random.default_rng(seed)
    window = drawn_window(rng, 1 + seed % 3, dilated=False, ceil=bool(seed % 4 == 1))
    x = Quantized(drawn_image(rng, window, 5), drawn_grid(rng))
    # the same grid on both sides, and an odd zero point: ties
    out = x.grid if seed % 3 else roomy(rng, x.grid, literal(0.02, 0), 1)
    shared = {**attributes(window), "ceil_mode": int(window.ceil), "count_include_pad": seed % 2}
    want = average_pool(x, out, window, padding_counts=bool(seed % 2))
    op = "QLinearAveragePool"
    got = run(op, [x.codes, *x.grid, *out], [0], U8, channels_last=1, **shared)
    assert_same(got, want)
    got = run(op, [first(x.codes), *x.grid, *out], [0], U8, channels_last=0, **shared)
    assert_same(got, first(want))


@both_types
@seeds(12)
def test_max_pool(dtype, seed):
    rng = np.random.default_rng(seed)
    window = drawn_window(rng, 2, ceil=bool(seed % 2))
    codes = drawn_image(rng, window, 5, dtype)
    want = max_pool(codes, window)
    shared = {**attributes(window), "ceil_mode": int(window.ceil), "dilations": window.dilations}
    assert_same(run("NhwcMaxPool", [codes], [0], dtype, **shared), want)
    assert_same(run("MaxPool", [first(codes)], [0], dtype, "", **shared), first(want))


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
@seeds(6)
def test_automatic_pads(auto, seed):
    rng = np.random.default_rng(seed)
    window = drawn_window(rng, 2)._replace(dilations=(1, 1))
    x = Quantized(drawn_image(rng, window, 3), drawn_grid(rng))
    weight = Quantized(drawn_codes(rng, (4, 3, *window.kernel)), literal(0.02, 128))
    out = roomy(rng, x.grid, weight.grid, 3 * np.prod(window.kernel))
    pads = same_pads(x.codes.shape[1:-1], window, extra_before=auto == "SAME_LOWER")
    want = conv(x, weight, None, out, window._replace(pads=pads))
    given = [first(x.codes), *x.grid, weight.codes, *weight.grid, *out]
    attrs = {"kernel_shape": window.kernel, "strides": window.strides, "auto_pad": auto}
    assert_same(run("QLinearConv", given, [0], U8, "", **attrs), first(want))
