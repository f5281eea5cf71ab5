# SPDX-License-Identifier: Apache-2.0
"""Normalise does its job, keeps the function, does nothing twice, and declines near-misses."""

import numpy as np
import onnx
import pytest

from qhyvit_onnx.errors import ModelError

X = np.random.default_rng(0).standard_normal((2, 4, 6, 8)).astype(np.float32)

# Flatten a map into tokens and back, as exporters do it for a free batch.
UNFOLD = """
g (float[N, 4, 6, 8] x) => (float[N, 4, 6, 8] y)
{
    shape = Shape(x)
    zero = Constant<value_int = 0>()
    batch = Gather<axis = 0>(shape, zero)
    row = Constant<value_int = 2>()
    height = Gather<axis = 0>(shape, row)
    real = Cast<to = 1>(height)
    two = Constant<value_float = 2.0>()
    half = Div(real, two)
    up = Ceil(half)
    whole = Cast<to = 7>(up)
    zeros = Constant<value_ints = [0]>()
    b = Unsqueeze(batch, zeros)
    h = Unsqueeze(whole, zeros)
    rest = Constant<value_ints = [4, 2]>()
    width = Constant<value_ints = [8]>()
    target = Concat<axis = 0>(b, rest, h, width)
    split = Reshape(x, target)
    turned = Transpose<perm = [0, 1, 3, 2, 4]>(split)
    doubled = Mul(batch, zero3)
    d = Unsqueeze(doubled, zeros)
    rows = Constant<value_ints = [-1, 8]>()
    mixed = Concat<axis = 0>(d, rows)
    tokens = Reshape(turned, mixed)
    active = Relu(tokens)
    back = Reshape(active, target)
    y = Reshape(back, shape)
}
"""


def test_ends_the_shape_chains_of_a_free_batch(build, normalised, ops, assert_same, golden):
    model = build(UNFOLD, zero3=np.array(3))
    result, outcome = normalised(model)
    assert outcome.changed > 0
    assert set(ops(result)) == {"Reshape", "Transpose", "Relu"}
    assert_same(model, result, {"x": X}, {"x": X[:1]})
    assert result.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    golden("normalise/unfold", result)


def test_second_run_changes_nothing(build, normalised):
    once, _ = normalised(build(UNFOLD, zero3=np.array(3)))
    twice, outcome = normalised(once)
    assert outcome.changed == 0
    assert twice.graph == once.graph


def test_keeps_a_chain_that_depends_on_two_free_dims(build, normalised, ops, assert_same):
    text = """
    g (float[N, 4, H, W] x) => (float[A, B, C] y)
    {
        shape = Shape(x)
        a = Constant<value_ints = [2]>()
        h = Gather<axis = 0>(shape, a)
        b = Constant<value_ints = [3]>()
        w = Gather<axis = 0>(shape, b)
        two = Constant<value_ints = [2]>()
        half = Div(w, two)
        c = Constant<value_ints = [8]>()
        target = Concat<axis = 0>(half, h, c)
        y = Reshape(x, target)
    }
    """
    model = build(text)
    result, _ = normalised(model)
    assert "Shape" in ops(result)
    assert_same(model, result, {"x": X[:1]})


def test_two_free_dims_of_which_one_is_copied(build, normalised, ops, assert_same):
    text = """
    g (float[N, 4, 6, W] x) => (float[N, A, W] y)
    {
        shape = Shape(x)
        at = Constant<value_ints = [0]>()
        n = Gather<axis = 0>(shape, at)
        tail = Constant<value_ints = [24]>()
        last = Constant<value_ints = [3]>()
        w = Gather<axis = 0>(shape, last)
        target = Concat<axis = 0>(n, tail, w)
        y = Reshape(x, target)
    }
    """
    model = build(text)
    result, _ = normalised(model)
    assert ops(result) == ["Reshape"]
    held = {item.name: item for item in result.graph.initializer}
    target = onnx.numpy_helper.to_array(held[result.graph.node[0].input[1]])
    assert target.tolist() == [0, 24, -1]
    assert_same(model, result, {"x": X}, {"x": X[:1, :, :, :5]})


def test_does_not_take_anonymous_dims_for_equal(build, normalised, ops):
    text = """
    g (float[?, 4] x, float[?, 4] z) => (float[A, B] y, float[C, D] v)
    { s = Shape(z) y = Reshape(x, s) v = Relu(z) }
    """
    result, _ = normalised(build(text))
    assert "Reshape" in ops(result)


def test_drops_an_expand_that_broadcasting_does(build, normalised, ops, assert_same):
    text = """
    g (float[N, 4, 6, 8] x) => (float[N, 4, 6, 8] y)
    { m = ReduceMean<axes = [3]>(x) s = Shape(x) e = Expand(m, s) y = Mul(x, e) }
    """
    model = build(text)
    result, _ = normalised(model)
    assert ops(result) == ["ReduceMean", "Mul"]
    assert_same(model, result, {"x": X})


def test_keeps_an_expand_to_the_batch(build, normalised, ops, assert_same):
    text = """
    g (float[N, 4] x) => (float[A, 4] y)
    {
        s = Shape<end = 1>(x)
        four = Constant<value_ints = [4]>()
        t = Concat<axis = 0>(s, four)
        e = Expand(token, t)
        y = Concat<axis = 0>(x, e)
    }
    """
    model = build(text, token=(1, 4))
    result, _ = normalised(model)
    assert "Expand" in ops(result)
    assert_same(model, result, {"x": X[0, :, :, 0].T.copy()})


def test_drops_what_does_nothing(build, normalised, ops, assert_same):
    text = """
    g (float[N, 4, 6, 8] x) => (float[N, 8, 6, 4] y) <float one = {1.0}, float[1] nought = {0.0}>
    {
        i = Identity(x)
        o = Mul(one, i)
        n = Add(o, nought)
        f = Cast<to = 1>(n)
        d, mask = Dropout(f)
        t = Transpose<perm = [0, 2, 3, 1]>(d)
        u = Transpose<perm = [0, 3, 1, 2]>(t)
        s = Unsqueeze(u, ax)
        q = Squeeze(s, ax)
        r = Relu(q)
        y = Transpose<perm = [0, 3, 2, 1]>(r)
    }
    """
    model = build(text, ax=np.array([0]))
    result, outcome = normalised(model)
    assert ops(result) == ["Relu", "Transpose"]
    assert outcome.changed > 0
    assert_same(model, result, {"x": X})


def test_keeps_a_no_op_between_input_and_output(build, normalised, ops):
    result, outcome = normalised(build("g (float[N] x) => (float[N] y) { y = Identity(x) }"))
    assert ops(result) == ["Identity"]
    assert outcome.changed == 0


def test_folds_constants_but_no_blow_ups_and_no_quantized_weights(
    build, normalised, ops, assert_same
):
    text = """
    g (float[N, 8] x) => (float[N, 4] y, float[M, L] z, float[N, 8] v)
    {
        t = Transpose<perm = [1, 0]>(w)
        h = Mul(t, two)
        y = MatMul(x, h)
        e = Expand(one, big)
        z = Relu(e)
        q = DequantizeLinear(codes, two)
        v = Add(x, q)
    }
    """
    model = build(
        text, w=(4, 8), two=np.float32(2), one=np.ones((1, 1), np.float32),
        big=np.array([1024, 1024]), codes=np.arange(8, dtype=np.int8),
    )  # fmt: skip
    result, _ = normalised(model)
    assert sorted(ops(result)) == ["Add", "DequantizeLinear", "Expand", "MatMul", "Relu"]
    assert_same(model, result, {"x": X[0, :, 0, :].copy()})


def test_lifts_an_old_model(build, normalised, ops, assert_same):
    text = """
    <ir_version: 7, opset_import: ["": 11]>
    g (float[N, 4, 6, 8] x) => (float[N, 4, 6, 8] y)
    {
        a = Clip(x, low, high)
        s = Softmax<axis = 3>(a)
        u = Unsqueeze<axes = [0]>(s)
        y = Squeeze<axes = [0]>(u)
    }
    """
    model = build(text, low=np.float32(-1), high=np.float32(1))
    result, outcome = normalised(model)
    assert "1 opset lifts" in outcome.note
    assert result.opset_import[0].version == 17
    assert ops(result) == ["Clip", "Softmax"]
    assert_same(model, result, {"x": X})


def test_says_which_op_cannot_be_lifted(build, normalised):
    text = """
    <ir_version: 3, opset_import: ["": 6]>
    g (float[N, 4, 6, 8] x) => (float[N, 4, 6, 8] y) { y = Add<axis = 1, broadcast = 1>(x, s) }
    """
    with pytest.raises(ModelError, match="export the model again at opset 17"):
        normalised(build(text, s=(4,)))


def test_keeps_the_opset_of_a_newer_model(build, normalised):
    text = """
    <ir_version: 9, opset_import: ["": 19]>
    g (float[N] x) => (float[N] y) { c = Constant<value_float = 2.0>() y = Mul(x, c) }
    """
    result, _ = normalised(build(text))
    assert result.opset_import[0].version == 19


def test_inlines_local_functions(build, normalised, ops, assert_same):
    text = """
    <ir_version: 8, opset_import: ["": 17, "local": 1]>
    g (float[N, 4, 6, 8] x) => (float[N, 4, 6, 8] y) { y = local.twice(x) }
    <domain: "local", opset_import: ["": 17]>
    twice (a) => (b) { b = Add(a, a) }
    """
    model = build(text)
    result, _ = normalised(model)
    assert ops(result) == ["Add"]
    assert_same(model, result, {"x": X})


def test_does_not_touch_the_source(build, normalised):
    model = build(UNFOLD, zero3=np.array(3))
    before = model.SerializeToString(deterministic=True)
    normalised(model)
    assert model.SerializeToString(deterministic=True) == before


def test_an_old_file_that_lists_its_weights_as_inputs(build, normalised, ops):
    text = """
    <ir_version: 3, opset_import: ["": 9]>
    g (float[N, 4, 6, 8] x, float[4] s) => (float[N, 4, 6, 8] y)
    { t = Unsqueeze<axes = [1, 2]>(s) y = Add(x, t) }
    """
    result, _ = normalised(build(text, s=(4,)))
    assert ops(result) == ["Add"]
    assert [item.name for item in result.graph.input] == ["x"]
    assert result.ir_version >= 4
