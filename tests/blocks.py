# SPDX-License-Identifier: Apache-2.0
"""One tiny network per family of hybrids, with the blocks as its authors draw them.

Every function returns a model of opset 17 with a free batch ``N``, an input ``x`` of
(N, 3, 16, 16) unless it says otherwise, and weights drawn from a seed. Nodes have the names of the
papers' modules; a name used twice gets a number.
"""

from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper

SIDE, CLASSES = 16, 5


class Net:
    """A graph in the making; a tensor has the name of the node that writes it."""

    def __init__(self, shape=("N", 3, SIDE, SIDE)):
        self.rng = np.random.default_rng(0)
        self.shape = shape
        self.nodes, self.arrays, self.names = [], [], set()
        self.stage = ""

    def op(self, kind, *inputs, name="", outputs=1, **attrs):
        """Add a node; return its output, or a list when it has several."""
        name = self._fresh(f"{self.stage}{name or kind.lower()}")
        outs = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), outs, name, **attrs))
        return outs[0] if outputs == 1 else outs

    def _fresh(self, name):
        candidate, count = name, 2
        while candidate in self.names:
            candidate, count = f"{name}{count}", count + 1
        self.names.add(candidate)
        return candidate

    def constant(self, values, dtype=np.float32):
        name = f"c{len(self.arrays)}"
        self.arrays.append(onnx.numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weight(self, *shape):
        """Return weights that keep the size of what they multiply."""
        fan_in = prod(shape[1:]) if len(shape) != 2 else shape[0]
        return self.constant(self.rng.standard_normal(shape) / np.sqrt(max(fan_in, 1)))

    def bias(self, width):
        return self.constant(self.rng.normal(0.0, 0.1, width))

    def reshape(self, x, *shape):
        return self.op("Reshape", x, self.constant(shape, np.int64))

    def transpose(self, x, *perm):
        return self.op("Transpose", x, perm=perm)

    def add(self, *inputs, name="add"):
        return self.op("Add", *inputs, name=name)

    def silu(self, x):
        return self.op("Mul", x, self.op("Sigmoid", x))

    def conv(self, x, inputs, outputs, size=1, name="conv", stride=1, group=1, pad=None):
        """Add a convolution with a bias; a depthwise one has ``group`` of ``inputs``."""
        weights = self.weight(outputs, inputs // group, size, size), self.bias(outputs)
        pads = [size // 2 if pad is None else pad] * 4
        return self.op(
            "Conv", x, *weights, name=name, kernel_shape=[size] * 2, strides=[stride] * 2,
            pads=pads, group=group,
        )  # fmt: skip

    def linear(self, x, inputs, outputs, name="linear"):
        y = self.op("MatMul", x, self.weight(inputs, outputs), name=name)
        return self.add(y, self.bias(outputs), name=f"{name}.bias")

    def norm(self, x, width, name="norm"):
        gamma, beta = self.constant(self.rng.uniform(0.5, 2.0, width)), self.bias(width)
        return self.op("LayerNormalization", x, gamma, beta, name=name)

    def mlp(self, x, width):
        return self.linear(
            self.silu(self.linear(x, width, 2 * width, "fc1")), 2 * width, width, "fc2"
        )

    def conv_mlp(self, x, width, name="mlp", *, middle=False):
        """Two pointwise convolutions; with ``middle`` a depthwise 3x3 between them."""
        y = self.silu(self.conv(x, width, 2 * width, name=f"{name}.fc1"))
        if middle:
            y = self.silu(self.conv(y, 2 * width, 2 * width, 3, f"{name}.mid", group=2 * width))
        return self.conv(y, 2 * width, width, name=f"{name}.fc2")

    def tokens(self, x, width, count):
        """(N, C, H, W) to (N, HW, C)."""
        return self.transpose(self.reshape(x, 0, width, count), 0, 2, 1)

    def image(self, x, width, side):
        """(N, HW, C) to (N, C, H, W)."""
        return self.reshape(self.transpose(x, 0, 2, 1), 0, width, side, side)

    def attend(self, q, k, v, factor=0.5):
        """Softmax attention on (N, heads, L, d) each."""
        turned = self.transpose(k, 0, 1, 3, 2)
        scores = self.op("Mul", self.op("MatMul", q, turned, name="qk"), self.constant(factor))
        return self.op("MatMul", self.op("Softmax", scores, axis=-1), v, name="av")

    def heads(self, x, width, heads=2):
        """(N, L, C) to (N, heads, L, d)."""
        return self.transpose(self.reshape(x, 0, 0, heads, width // heads), 0, 2, 1, 3)

    def joined(self, x, width):
        """(N, heads, L, d) to (N, L, C)."""
        return self.reshape(self.transpose(x, 0, 2, 1, 3), 0, 0, width)

    def self_attention(self, x, width):
        """Attention of (N, L, C) with one packed projection."""
        packed = self.reshape(self.linear(x, width, 3 * width, "qkv"), 0, 0, 3, 2, width // 2)
        turned = self.transpose(packed, 2, 0, 3, 1, 4)
        parts = self.op("Split", turned, self.constant([1, 1, 1], np.int64), outputs=3, axis=0)
        axis = self.constant([0], np.int64)
        y = self.attend(*(self.op("Squeeze", part, axis) for part in parts))
        return self.linear(self.joined(y, width), width, width, "proj")

    def asked_attention(self, q, k, v, width):
        """Attention of (N, L, C) each with three projections."""
        parts = (self.linear(t, width, width, n) for t, n in ((q, "q"), (k, "k"), (v, "v")))
        y = self.attend(*(self.heads(part, width) for part in parts))
        return self.linear(self.joined(y, width), width, width, "proj")

    def transformer(self, x, width):
        x = self.add(x, self.self_attention(self.norm(x, width, "norm1"), width))
        return self.add(x, self.mlp(self.norm(x, width, "norm2"), width))

    def classify(self, x, width):
        """Pool a map and classify it."""
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self._head(pooled, width)

    def classify_tokens(self, x, width):
        return self._head(self.op("ReduceMean", x, axes=[1], keepdims=0), width)

    def _head(self, x, width):
        return self.op("Gemm", x, self.weight(width, CLASSES), self.bias(CLASSES), name="head")

    def model(self, output, rank=2):
        """Return the checked model with one output."""
        dims = [f"y{i}" for i in range(rank)]
        value = helper.make_tensor_value_info
        ports = value("x", TensorProto.FLOAT, self.shape), value(output, TensorProto.FLOAT, dims)
        graph = helper.make_graph(self.nodes, "g", [ports[0]], [ports[1]], self.arrays)
        opset = helper.make_opsetid("", 17)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def mobilevit_v1(stages=1):
    """MobileViT block: local, tokens of 2x2 patches, two transformers, back, fused with its input.

    Maps of 8x8 in the first stage, halved for each further one.
    """
    net = Net()
    x, side = net.silu(net.conv("x", 3, 8, 3, "stem", stride=2)), SIDE // 2
    for stage in range(stages):
        net.stage = f"{stage}." if stages > 1 else ""
        if stage:
            x = net.silu(net.conv(x, 8, 8, 3, "down", stride=2, group=8))
            x, side = net.conv(x, 8, 8, name="down.point"), side // 2
        y = net.conv(net.silu(net.conv(x, 8, 8, 3, "conv_kxk")), 8, 12, name="conv_1x1")
        y = _unfolded(net, y, side)
        for _ in range(2):
            y = net.transformer(y, 12)
        y = _folded(net, net.norm(y, 12, "last_norm"), side)
        y = net.silu(net.conv(y, 12, 8, name="conv_proj"))
        y = net.op("Concat", x, y, axis=1)
        x = net.silu(net.conv(y, 16, 8, 3, "conv_fusion"))
    net.stage = ""
    return net.model(net.classify(x, 8))


def _unfolded(net, x, side):
    """(N, 12, S, S) to (4N, SS/4, 12): one sequence per position in a 2x2 patch."""
    half = side // 2
    x = net.transpose(net.reshape(x, -1, 2, half, 2), 0, 2, 1, 3)
    return net.reshape(
        net.transpose(net.reshape(x, -1, 12, half**2, 4), 0, 3, 2, 1), -1, half**2, 12
    )


def _folded(net, x, side):
    half = side // 2
    x = net.transpose(net.reshape(x, -1, 4, half**2, 12), 0, 3, 2, 1)
    return net.reshape(
        net.transpose(net.reshape(x, -1, half, 2, 2), 0, 2, 1, 3), -1, 12, side, side
    )


def mobilevit_v2(*, separate=False):
    """MobileViTv2 block: separable attention on (N, C, 4, 16) in pointwise convolutions.

    With ``separate`` the projections to scores, keys and values are three convolutions.
    """
    net = Net()
    x = net.silu(net.conv("x", 3, 8, 3, "stem", stride=2))
    x = net.silu(net.conv(x, 8, 8, 3, "conv_kxk", group=8))
    x = net.conv(x, 8, 12, name="conv_1x1")
    x = net.transpose(net.reshape(x, 0, 12, 4, 2, 4, 2), 0, 1, 3, 5, 2, 4)
    x = net.reshape(x, 0, 12, 4, 16)
    for _ in range(2):
        x = net.add(x, _separable(net, _group_norm(net, x), separate))
        x = net.add(x, net.conv_mlp(_group_norm(net, x), 12))
    x = net.reshape(_group_norm(net, x, "last_norm"), 0, 12, 2, 2, 4, 4)
    x = net.reshape(net.transpose(x, 0, 1, 4, 2, 5, 3), 0, 12, 8, 8)
    x = net.conv(x, 12, 8, name="conv_proj")
    x = net.silu(net.conv(x, 8, 16, name="next.point"))
    x = net.silu(net.conv(x, 16, 16, 3, "next.depthwise", stride=2, group=16))
    return net.model(net.classify(x, 16))


def _group_norm(net, x, name="norm"):
    """One group, as exporters write it: (N, 12, 4, 16) in and out."""
    ones, zeros = net.constant([1.0]), net.constant([0.0])
    flat = net.reshape(x, 0, 1, -1)
    y = net.op("InstanceNormalization", flat, ones, zeros, name=name)
    y = net.op("Mul", net.reshape(y, 0, 12, 4, 16), net.weight(12, 1, 1))
    return net.add(y, net.weight(12, 1, 1))


def _separable(net, x, separate):
    if separate:
        parts = (
            net.conv(x, 12, width, name=name) for width, name in ((1, "q"), (12, "k"), (12, "v"))
        )
    else:
        packed = net.conv(x, 12, 25, name="qkv_proj")
        sizes = net.constant([1, 12, 12], np.int64)
        parts = net.op("Split", packed, sizes, outputs=3, axis=1)
    scores, k, v = parts
    weighted = net.op("Mul", k, net.op("Softmax", scores, axis=-1))
    context = net.op(
        "ReduceSum", weighted, net.constant([-1], np.int64), name="context", keepdims=1
    )
    return net.conv(net.op("Mul", net.op("Relu", v), context), 12, 12, name="out_proj")


def efficientformer_v1():
    """EfficientFormer: pooling mixers on a map of 8x8, then Flat, then attention on tokens."""
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8, 3, "stem", stride=2))
    for _ in range(2):
        pooled = net.op(
            "AveragePool", x, name="pool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=0
        )
        mixed = net.op("Mul", net.op("Sub", pooled, x), net.weight(1, 8, 1, 1))
        x = net.add(x, mixed)
        x = net.add(x, net.conv_mlp(x, 8))
    x = net.tokens(x, 8, 64)
    for _ in range(2):
        x = net.transformer(x, 8)
    return net.model(net.classify_tokens(net.norm(x, 8), 8))


def efficientformer_v2():
    """EfficientFormerV2: attention at 4x4 written back to 8x8; one that halves; one at 4x4."""
    net = Net()
    x = net.silu(net.conv("x", 3, 8, 3, "stem", stride=2))
    x = net.add(x, net.conv_mlp(x, 8, "first.mlp", middle=True))
    net.stage = "strided."
    x = net.add(x, _talking(net, x, stride=2))
    x = net.add(x, net.conv_mlp(x, 8, middle=True))
    net.stage = "down."
    x = net.add(_halving(net, x), net.conv(x, 8, 8, 3, "conv", stride=2))
    x = net.add(x, net.conv_mlp(x, 8, middle=True))
    net.stage = "plain."
    x = net.add(x, _talking(net, x, stride=1))
    x = net.add(x, net.conv_mlp(x, 8, middle=True))
    net.stage = ""
    return net.model(net.classify(x, 8))


def _talking(net, x, stride):
    """Attention on 4x4 positions with heads that talk and a local path around it."""
    if stride > 1:
        x = net.conv(x, 8, 8, 3, "stride_conv", stride=stride, group=8)
    q, k, v = (net.conv(x, 8, 8, name=name) for name in "qkv")
    local = net.conv(v, 8, 8, 3, "v_local", group=8)
    split = [net.reshape(t, 0, 2, 4, 16) for t in (q, k, v)]
    scores = net.op("MatMul", net.transpose(split[0], 0, 1, 3, 2), split[1], name="qk")
    scores = net.conv(net.add(scores, net.weight(2, 16, 16)), 2, 2, name="talk1")
    weights = net.conv(net.op("Softmax", scores, axis=-1), 2, 2, name="talk2")
    y = net.op("MatMul", weights, net.transpose(split[2], 0, 1, 3, 2), name="av")
    y = net.add(net.reshape(net.transpose(y, 0, 1, 3, 2), 0, 8, 4, 4), local)
    if stride > 1:
        scales = net.constant([1.0, 1.0, stride, stride])
        y = net.op("Resize", y, "", scales, name="upsample", mode="linear")
    return net.conv(net.silu(y), 8, 8, name="proj")


def _halving(net, x):
    """Attention whose queries are every second position: 8x8 to 4x4."""
    thin = net.op("AveragePool", x, name="q.pool", kernel_shape=[1, 1], strides=[2, 2])
    q = net.add(net.conv(x, 8, 8, 3, "q.local", stride=2, group=8), thin)
    q, k, v = net.conv(q, 8, 8, name="q.proj"), *(net.conv(x, 8, 8, name=name) for name in "kv")
    local = net.conv(v, 8, 8, 3, "v_local", stride=2, group=8)
    q, k, v = (net.reshape(t, 0, 2, 4, n) for t, n in ((q, 16), (k, 64), (v, 64)))
    scores = net.op("MatMul", net.transpose(q, 0, 1, 3, 2), k, name="qk")
    weights = net.op("Softmax", scores, axis=-1)
    y = net.op("MatMul", weights, net.transpose(v, 0, 1, 3, 2), name="av")
    y = net.add(net.reshape(net.transpose(y, 0, 1, 3, 2), 0, 8, 4, 4), local)
    return net.conv(net.silu(y), 8, 8, name="proj")


def mobile_former(blocks=2):
    """Mobile-Former: 3 tokens beside a map of 8x8; attention both ways in every block."""
    net = Net()
    x = net.conv(net.silu(net.conv("x", 3, 8, 3, "stem", stride=2)), 8, 8, 3, "lite", group=8)
    x = net.conv(x, 8, 8, name="lite.point")
    batch = net.op("Slice", net.op("Shape", "x"), *(net.constant([n], np.int64) for n in (0, 1)))
    shape = net.op("Concat", batch, net.constant([3, 16], np.int64), axis=0)
    z = net.op("Expand", net.weight(1, 3, 16), shape)
    for block in range(blocks):
        net.stage = f"{block}."
        z = net.norm(net.add(z, _to_former(net, z, x)), 16)
        z = net.norm(net.add(z, net.self_attention(z, 16)), 16)
        z = net.norm(net.add(z, net.mlp(z, 16)), 16, "former.norm")
        x = net.add(x, _mobile(net, x, z))
        x = net.add(x, _to_mobile(net, x, z))
    net.stage = ""
    token = net.op("Gather", z, net.constant(0, np.int64), axis=1)
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    joined = net.op("Concat", pooled, token, axis=1)
    return net.model(net._head(joined, 24))


def _to_former(net, z, x):
    """Tokens ask features, which are keys and values as they are."""
    q = net.heads(net.linear(z, 16, 8, "to_former.q"), 8)
    k = net.reshape(x, 0, 2, 4, 64)
    scores = net.op("MatMul", q, k, name="to_former.qk")
    weights = net.op("Softmax", scores, axis=-1)
    y = net.op("MatMul", weights, net.transpose(k, 0, 1, 3, 2), name="to_former.av")
    gate = net.op("HardSigmoid", net.linear(z, 16, 8, "to_former.gate"))
    return net.linear(net.op("Mul", net.joined(y, 8), gate), 8, 16, "to_former.out")


def _to_mobile(net, x, z):
    """Features ask tokens, as they are."""
    q = net.transpose(net.reshape(x, 0, 2, 4, 64), 0, 1, 3, 2)
    k, v = (net.heads(net.linear(z, 16, 8, f"to_mobile.{name}"), 8) for name in "kv")
    scores = net.op("MatMul", q, net.transpose(k, 0, 1, 3, 2), name="to_mobile.qk")
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), v, name="to_mobile.av")
    return net.reshape(net.transpose(y, 0, 1, 3, 2), 0, 8, 8, 8)


def _mobile(net, x, z):
    """Inverted residual with dynamic ReLU."""
    y = _dynamic_relu(net, net.conv(x, 8, 16, name="mobile.widen"), z, 16)
    y = _dynamic_relu(net, net.conv(y, 16, 16, 3, "mobile.depthwise", group=16), z, 16)
    return net.conv(y, 16, 8, name="mobile.project")


def _dynamic_relu(net, x, z, width):
    """max(a x, b x), with slopes that two layers make of the first token."""
    token = net.op("Gather", z, net.constant(0, np.int64), axis=1)
    hidden = net.op("Relu", net.linear(token, 16, 4, "slope1"))
    slopes = net.op("HardSigmoid", net.linear(hidden, 4, 2 * width, "slope2"))
    slopes = net.op("Unsqueeze", slopes, net.constant([2, 3], np.int64))
    parts = net.op("Split", slopes, net.constant([width, width], np.int64), outputs=2, axis=1)
    return net.op("Max", *(net.op("Mul", x, part) for part in parts))


def edgenext():
    """EdgeNeXt: split depthwise convolutions, transposed attention, then a convolution encoder."""
    net = Net()
    x = net.conv("x", 3, 8, 4, "stem", stride=4, pad=0)
    x = net.add(x, net.conv_mlp(net.conv(x, 8, 8, 3, "encode", group=8), 8, "encode.mlp"))
    halves = net.constant([4, 4], np.int64)
    first, second = net.op("Split", x, halves, outputs=2, axis=1)
    y = net.op("Concat", net.conv(first, 4, 4, 3, "split_conv", group=4), second, axis=1)
    y = net.tokens(y, 8, 16)
    y = net.add(y, _cross_covariance(net, net.norm(y, 8)))
    y = net.mlp(net.norm(y, 8), 8)
    x = net.add(x, net.image(y, 8, 4))
    x = net.add(x, net.conv_mlp(net.conv(x, 8, 8, 5, "next", group=8), 8, "next.mlp"))
    return net.model(net.classify(x, 8))


def _cross_covariance(net, x):
    """Attention between channels: (d, L) x (L, d) x (d, L)."""
    packed = net.reshape(net.linear(x, 8, 24, "qkv"), 0, 0, 3, 2, 4)
    turned = net.transpose(packed, 2, 0, 3, 4, 1)
    parts = net.op("Split", turned, net.constant([1, 1, 1], np.int64), outputs=3, axis=0)
    q, k, v = (net.op("Squeeze", part, net.constant([0], np.int64)) for part in parts)
    q, k = (net.op("Div", t, net.op("ReduceL2", t, axes=[-1], keepdims=1)) for t in (q, k))
    y = net.attend(q, k, v)
    return net.linear(net.reshape(net.transpose(y, 0, 3, 1, 2), 0, 0, 8), 8, 8, "proj")


def efficientvit():
    """EfficientViT: ReLU linear attention at two scales, then an inverted bottleneck; twice."""
    net = Net()
    x = net.op("HardSwish", net.conv("x", 3, 8, 3, "stem", stride=2))
    for block in range(2):
        net.stage = f"{block}."
        packed = net.conv(x, 8, 24, name="qkv")
        wide = net.conv(packed, 24, 24, 5, "aggregate", group=24)
        wide = net.conv(wide, 24, 24, name="aggregate.point", group=6)
        y = net.reshape(net.op("Concat", packed, wide, axis=1), 0, 4, 12, 64)
        sizes = net.constant([4, 4, 4], np.int64)
        q, k, v = net.op("Split", net.transpose(y, 0, 1, 3, 2), sizes, outputs=3, axis=3)
        q, k = net.op("Relu", q), net.op("Relu", k)
        v = net.op("Pad", v, net.constant([0] * 7 + [1], np.int64), net.constant(1.0))
        y = net.op("MatMul", net.transpose(k, 0, 1, 3, 2), v, name="kv")
        y = net.op("MatMul", q, y, name="qkv_product")
        value, weight = net.op("Split", y, net.constant([4, 1], np.int64), outputs=2, axis=3)
        y = net.op("Div", value, net.add(weight, net.constant(1e-6)))
        y = net.reshape(net.transpose(y, 0, 1, 3, 2), 0, 16, 8, 8)
        x = net.add(x, net.conv(y, 16, 8, name="proj"))
        x = net.add(x, net.conv_mlp(x, 8, middle=True))
    net.stage = ""
    return net.model(net.classify(x, 8))


def levit():
    """LeViT: a convolutional stem, then only attention; one block takes every second position."""
    net = Net()
    x = net.op("HardSwish", net.conv("x", 3, 8, 3, "stem1", stride=2))
    x = net.tokens(net.conv(x, 8, 8, 3, "stem2", stride=2), 8, 16)
    x = net.add(x, net.self_attention(x, 8))
    x = net.add(x, net.mlp(x, 8))
    net.stage = "down."
    thin = net.reshape(x, 0, 4, 4, 8)
    for axis in (1, 2):
        begin, end, axes, steps = (net.constant([n], np.int64) for n in (0, 4, axis, 2))
        thin = net.op("Slice", thin, begin, end, axes, steps)
    x = net.asked_attention(net.reshape(thin, 0, 4, 8), x, x, 8)
    x = net.add(x, net.mlp(x, 8))
    net.stage = ""
    return net.model(net.classify_tokens(x, 8))


def vit():
    """A plain ViT: patches, position embedding, transformers."""
    net = Net()
    x = net.tokens(net.conv("x", 3, 8, 4, "patches", stride=4, pad=0), 8, 16)
    x = net.add(x, net.weight(1, 16, 8))
    for _ in range(2):
        x = net.transformer(x, 8)
    return net.model(net.classify_tokens(net.norm(x, 8), 8))


def se_conv_net():
    """A convolutional net with squeeze-and-excitation and SiLU right before the pooling."""
    net = Net()
    x = net.silu(net.conv("x", 3, 8, 3, "stem", stride=2))
    for _ in range(2):
        y = net.silu(net.conv(x, 8, 8, 3, "conv", group=8))
        gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", y), 8, 2, name="squeeze"))
        gate = net.op("Sigmoid", net.conv(gate, 2, 8, name="excite"))
        x = net.add(x, net.conv(net.op("Mul", y, gate), 8, 8, name="point"))
    return net.model(net.classify(net.silu(x), 8))


def detr():
    """DETR: a convolutional backbone, one encoder and two decoder layers with 6 queries."""
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8, 3, "backbone", stride=2))
    x = net.tokens(net.conv(x, 8, 8, name="input_proj"), 8, 64)
    net.stage = "encoder."
    x = net.norm(net.add(x, net.self_attention(net.add(x, net.weight(1, 64, 8)), 8)), 8)
    x = net.norm(net.add(x, net.mlp(x, 8)), 8)
    z = net.weight(1, 6, 8)
    asked = net.weight(1, 6, 8)
    for layer in range(2):
        net.stage = f"{layer}.self."
        query = net.add(z, asked)
        z = net.norm(net.add(z, net.asked_attention(query, query, z, 8)), 8)
        net.stage = f"{layer}.cross."
        z = net.norm(net.add(z, net.asked_attention(net.add(z, asked), x, x, 8)), 8)
        z = net.norm(net.add(z, net.mlp(z, 8)), 8)
    net.stage = ""
    return net.model(net.linear(z, 8, CLASSES, "head"), rank=3)


FAMILIES = {
    "MobileViT": mobilevit_v1,
    "MobileViTv2": mobilevit_v2,
    "EfficientFormer": efficientformer_v1,
    "EfficientFormerV2": efficientformer_v2,
    "Mobile-Former": mobile_former,
    "EdgeNeXt": edgenext,
    "EfficientViT": efficientvit,
    "LeViT": levit,
    "ViT": vit,
    "convolutional": se_conv_net,
    "DETR": detr,
}
"""Every family, by the name of its paper."""
