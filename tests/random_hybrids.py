# SPDX-License-Identifier: Apache-2.0
"""Random hybrids of convolution and attention as ONNX text: one row of ``BLOCKS`` a kind.

Every map is (N, CHANNELS, SIDE, SIDE) and every tensor of tokens (N, SIDE * SIDE, CHANNELS), so
that any block may follow any other.
"""

import numpy as np

CHANNELS, SIDE, HIDDEN, CLASSES = 32, 8, 24, 10
MAP, TOKENS, SCORES = "float[a, b, c, d]", "float[e, f, g]", "float[h, i]"
CONSTANTS = f"""
<float zero = {{0.0}}, float half = {{0.5}}, float one = {{1.0}}, float six = {{6.0}},
 float root = {{1.4142135}}, float factor = {{0.2}}, float[4] doubled = {{1.0, 1.0, 2.0, 2.0}},
 int64[2] halves = {{{CHANNELS // 2}, {CHANNELS // 2}}},
 int64[3] thirds = {{{CHANNELS}, {CHANNELS}, {CHANNELS}}},
 int64[3] flat = {{-1, {CHANNELS}, {SIDE * SIDE}}},
 int64[4] square = {{-1, {CHANNELS}, {SIDE}, {SIDE}}},
 int64[4] heads = {{0, 0, 4, {CHANNELS // 4}}}, int64[3] joined = {{0, 0, {CHANNELS}}}>
"""
ACTIVATIONS = (
    "{y} = Relu ({x})",
    "{y} = Clip ({x}, zero, six)",
    "{y} = LeakyRelu ({x})",
    "{y} = HardSwish ({x})",
    "{y} = HardSigmoid ({x})",
    "{y} = Sigmoid ({x})",
    "{y} = Tanh ({x})",
    "{y}s = Sigmoid ({x}) {y} = Mul ({x}, {y}s)",
    "{y}d = Div ({x}, root) {y}e = Erf ({y}d) {y}p = Add ({y}e, one)"
    " {y}m = Mul ({x}, {y}p) {y} = Mul ({y}m, half)",
    "{y} = Identity ({x})",
)


class Net:
    """A graph in the making: its nodes as text, its weights, and the tensors a block may read."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.kinds = {"x": MAP}
        self.nodes, self.arrays = [], {}
        self.block = ""

    def op(self, text, **names):
        """Write nodes; ``{y}`` is a name that tells the block they are of, and is returned."""
        name = f"{self.block}_{len(self.nodes)}"
        self.nodes.append(text.format(y=name, **names))
        return name

    def array(self, values):
        name = f"w{len(self.arrays)}"
        self.arrays[name] = np.asarray(values, np.float32)
        return name

    def weight(self, *shape, fan_in):
        """Return weights that halve, keep or double the size of what they multiply."""
        gain = self.rng.choice([0.5, 1.0, 2.0]) / np.sqrt(fan_in)
        return self.array(gain * self.rng.standard_normal(shape))

    def sometimes(self):
        return self.rng.random() < 0.6

    def pick(self, kind):
        """Return a tensor of ``kind``, more often than not the newest."""
        found = [name for name, its_kind in self.kinds.items() if its_kind == kind]
        return found[-1] if self.sometimes() else found[self.rng.integers(len(found))]


def conv(net, x, inputs=CHANNELS, outputs=CHANNELS, size=3, group=1):
    """Write a convolution that keeps the size of the map, with a bias or without."""
    shape = (outputs, inputs // group, size, size)
    operands = [x, net.weight(*shape, fan_in=np.prod(shape[1:]))]
    if net.sometimes():
        operands.append(net.weight(outputs, fan_in=1))
    text = "{y} = Conv <kernel_shape = {kernel}, pads = {pads}, group = {group}> ({operands})"
    kernel, pads = [size] * 2, [size // 2] * 4
    return net.op(text, kernel=kernel, pads=pads, group=group, operands=", ".join(operands))


def linear(net, x, inputs=CHANNELS, outputs=CHANNELS):
    """Write a product of tokens with a weight, with a bias or without."""
    y = net.op("{y} = MatMul ({x}, {w})", x=x, w=net.weight(inputs, outputs, fan_in=inputs))
    if net.sometimes():
        y = net.op("{y} = Add ({x}, {b})", x=y, b=net.weight(outputs, fan_in=1))
    return y


def activation(net, x):
    return net.op(ACTIVATIONS[net.rng.integers(len(ACTIVATIONS))], x=x)


def dense_conv(net, x):
    return activation(net, conv(net, x))


def pointwise_conv(net, x):
    return activation(net, conv(net, x, size=1))


def depthwise_conv(net, x):
    return activation(net, conv(net, x, group=CHANNELS))


def conv_norm(net, x):
    gamma, beta, mean = (net.weight(CHANNELS, fan_in=1) for _ in range(3))
    variance = net.array(net.rng.uniform(0.5, 2.0, CHANNELS))
    text = "{y} = BatchNormalization ({x}, {gamma}, {beta}, {mean}, {variance})"
    y = net.op(text, x=conv(net, x), gamma=gamma, beta=beta, mean=mean, variance=variance)
    return activation(net, y)


def residual(net, x):
    return net.op("{y} = Add ({x}, {other})", x=x, other=net.pick(net.kinds[x]))


def gate(net, x):
    return net.op("{y} = Mul ({x}, {other})", x=x, other=net.pick(MAP))


def merge(net, x):
    y = net.op("{y} = Concat <axis = 1> ({x}, {other})", x=x, other=net.pick(MAP))
    return conv(net, y, inputs=2 * CHANNELS, size=1)


def half_conv(net, x):
    y = net.op("{y}, {y}r = Split <axis = 1> ({x}, halves)", x=x)
    done = activation(net, conv(net, y, inputs=CHANNELS // 2, outputs=CHANNELS // 2))
    return net.op("{y} = Concat <axis = 1> ({done}, {rest}r)", done=done, rest=y)


def squeeze_excite(net, x):
    pooled = net.op("{y} = GlobalAveragePool ({x})", x=x)
    inner = activation(net, conv(net, pooled, outputs=8, size=1))
    scale = conv(net, inner, inputs=8, size=1)
    return net.op("{y}s = Sigmoid ({scale}) {y} = Mul ({x}, {y}s)", x=x, scale=scale)


def max_pool(net, x):
    return net.op("{y} = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({x})", x=x)


def average_pool(net, x):
    return net.op("{y} = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({x})", x=x)


def down_and_up(net, x):
    y = net.op("{y} = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> ({x})", x=x)
    y = activation(net, conv(net, y))
    return net.op('{y} = Resize <mode = "nearest"> ({x}, , doubled)', x=y)


def to_tokens(net, x):
    text = "{y}f = Reshape ({x}, flat) {y} = Transpose <perm = [0, 2, 1]> ({y}f)"
    return net.op(text, x=x)


def to_map(net, x):
    text = "{y}t = Transpose <perm = [0, 2, 1]> ({x}) {y} = Reshape ({y}t, square)"
    return net.op(text, x=x)


def layer_norm(net, x):
    gamma, beta = net.array(net.rng.uniform(0.5, 2.0, CHANNELS)), net.weight(CHANNELS, fan_in=1)
    return net.op("{y} = LayerNormalization ({x}, {gamma}, {beta})", x=x, gamma=gamma, beta=beta)


def mlp(net, x):
    return linear(net, activation(net, linear(net, x, outputs=2 * CHANNELS)), inputs=2 * CHANNELS)


def attention(net, x):
    q, k, v = (linear(net, x) for _ in range(3))
    return linear(net, attend(net, q, k, v, turn="0, 2, 1"))


def packed_attention(net, x):
    packed = linear(net, x, outputs=3 * CHANNELS)
    q = net.op("{y}, {y}k, {y}v = Split <axis = 2> ({x}, thirds)", x=packed)
    return linear(net, attend(net, q, f"{q}k", f"{q}v", turn="0, 2, 1"))


def multi_head_attention(net, x):
    text = "{y}r = Reshape ({x}, heads) {y} = Transpose <perm = [0, 2, 1, 3]> ({y}r)"
    q, k, v = (net.op(text, x=linear(net, x)) for _ in range(3))
    y = attend(net, q, k, v, turn="0, 1, 3, 2")
    text = "{y}t = Transpose <perm = [0, 2, 1, 3]> ({x}) {y} = Reshape ({y}t, joined)"
    return linear(net, net.op(text, x=y))


def attend(net, q, k, v, turn):
    text = (
        "{y}k = Transpose <perm = [{turn}]> ({k}) {y}s = MatMul ({q}, {y}k)"
        " {y}f = Mul ({y}s, factor) {y}p = Softmax ({y}f) {y} = MatMul ({y}p, {v})"
    )
    return net.op(text, q=q, k=k, v=v, turn=turn)


BLOCKS = (  # block, what it reads, what it makes, how often against the others
    (dense_conv, MAP, MAP, 3),
    (pointwise_conv, MAP, MAP, 2),
    (depthwise_conv, MAP, MAP, 2),
    (conv_norm, MAP, MAP, 1),
    (residual, MAP, MAP, 2),
    (gate, MAP, MAP, 1),
    (merge, MAP, MAP, 1),
    (half_conv, MAP, MAP, 1),
    (squeeze_excite, MAP, MAP, 1),
    (max_pool, MAP, MAP, 1),
    (average_pool, MAP, MAP, 1),
    (down_and_up, MAP, MAP, 1),
    (activation, MAP, MAP, 1),
    (to_tokens, MAP, TOKENS, 4),
    (linear, TOKENS, TOKENS, 2),
    (activation, TOKENS, TOKENS, 1),
    (residual, TOKENS, TOKENS, 2),
    (layer_norm, TOKENS, TOKENS, 2),
    (mlp, TOKENS, TOKENS, 2),
    (attention, TOKENS, TOKENS, 1),
    (packed_attention, TOKENS, TOKENS, 1),
    (multi_head_attention, TOKENS, TOKENS, 2),
    (to_map, TOKENS, MAP, 2),
)


def random_hybrid(seed):
    """Return the text and the weights of a net of 3 to 11 blocks; half of them take any batch."""
    net = Net(seed)
    for _ in range(net.rng.integers(3, 12)):
        _grow(net)
    if net.sometimes():
        _classify(net)
    _, *others, last = net.kinds
    outputs = [last, *others[: net.rng.integers(2)]]
    shown = ", ".join(f"{net.kinds[name]} {name}" for name in outputs)
    batch = net.rng.choice(["N", "1"])
    head = f"g (float[{batch}, {CHANNELS}, {SIDE}, {SIDE}] x) => ({shown})"
    return "\n".join([head, CONSTANTS, "{", *net.nodes, "}"]), net.arrays


def _grow(net):
    rows = [row for row in BLOCKS if row[1] in net.kinds.values()]
    often = np.array([row[3] for row in rows])
    block, reads, makes, _ = rows[net.rng.choice(len(rows), p=often / often.sum())]
    net.block = block.__name__
    net.kinds[block(net, net.pick(reads))] = makes


def _classify(net):
    net.block = "head"
    hidden = net.weight(CHANNELS, HIDDEN, fan_in=CHANNELS)
    scores = net.weight(CLASSES, HIDDEN, fan_in=HIDDEN)
    y = net.op("{y}p = GlobalAveragePool ({x}) {y} = Flatten ({y}p)", x=net.pick(MAP))
    y = net.op("{y} = Gemm ({x}, {w}, {b})", x=y, w=hidden, b=net.weight(HIDDEN, fan_in=1))
    y = net.op("{y} = Gemm <transB = 1> ({x}, {w})", x=activation(net, y), w=scores)
    net.kinds[y] = SCORES
