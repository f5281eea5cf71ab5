# SPDX-License-Identifier: Apache-2.0
"""Random chains of data movement as ONNX models, with or without a free dim."""

from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

LARGEST = 300
"""Elements of the largest tensor: every element is checked."""
BATCH = 3
"""The number that stands for the free dim ``n`` when a model runs; divides no other size."""


@dataclass
class Drawing:
    """A chain under way. ``free`` is the axis whose size is a multiple of the free dim."""

    draw: object
    shape: list
    free: int | None
    nodes: list = field(default_factory=list)
    initializers: list = field(default_factory=list)
    tensor: str = "s"

    def constant(self, values):
        name = f"k{len(self.initializers)}"
        self.initializers.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op, inputs=(), outputs=None, **attrs):
        """Append a node that reads the current tensor first; its (first) output is the next one."""
        names = outputs or [f"t{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, [self.tensor, *inputs], names, **attrs))
        self.tensor = names[0]

    def ints(self, low, high):
        return self.draw(st.integers(low, high))

    def axis(self):
        """Draw an axis of fixed size, None if there is none."""
        fixed = [axis for axis in range(len(self.shape)) if axis != self.free]
        return self.draw(st.sampled_from(fixed)) if fixed else None

    def coefficient(self, axis):
        return self.shape[axis] // (BATCH if axis == self.free else 1)

    def resize(self, axis, size):
        self.shape[axis] = size


def reshape(d):
    total = prod(map(d.coefficient, range(len(d.shape))))
    sizes = factors(d, total)
    if d.free is None:
        target = list(sizes)
        if d.draw(st.booleans()):
            target[d.ints(0, len(target) - 1)] = -1
    else:
        d.free = d.ints(0, len(sizes) - 1)
        target = [-1 if axis == d.free else size for axis, size in enumerate(sizes)]
        sizes[d.free] *= BATCH
    d.add("Reshape", [d.constant(np.int64(target))])
    d.shape = sizes


def factors(d, total):
    """Write ``total`` as a product of up to five sizes."""
    sizes = [1] * d.ints(1, 5)
    for prime in (2, 3, 5, 7, 11, 13):
        while total % prime == 0:
            total //= prime
            sizes[d.ints(0, len(sizes) - 1)] *= prime
    sizes[0] *= total
    return sizes


def transpose(d):
    order = d.draw(st.permutations(range(len(d.shape))))
    d.add("Transpose", perm=order)
    d.shape = [d.shape[axis] for axis in order]
    d.free = None if d.free is None else order.index(d.free)


def unsqueeze(d):
    axis = d.ints(0, len(d.shape))
    d.add("Unsqueeze", [d.constant(np.int64([axis]))])
    d.shape.insert(axis, 1)
    d.free = None if d.free is None else d.free + (axis <= d.free)


def squeeze(d):
    ones = [axis for axis, size in enumerate(d.shape) if size == 1 and axis != d.free]
    if not ones or len(d.shape) == 1:
        return
    axis = d.draw(st.sampled_from(ones))
    d.add("Squeeze", [d.constant(np.int64([axis]))])
    del d.shape[axis]
    d.free = None if d.free is None else d.free - (axis < d.free)


def flatten(d):
    axis = d.ints(0, len(d.shape))
    d.add("Flatten", axis=axis)
    d.free = None if d.free is None else int(d.free >= axis)
    d.shape = [prod(d.shape[:axis]), prod(d.shape[axis:])]


def slice_(d):
    axis = d.ints(0, len(d.shape) - 1)
    step = d.draw(st.sampled_from([1, 1, 1, 2, 3, -1, -2]))
    end = 2**31 if step > 0 else -(2**31)
    start = 0 if step > 0 else -1
    if axis == d.free:
        step = np.sign(step)
    else:
        size = d.shape[axis]
        start, end = (
            d.draw(st.sampled_from([value, *range(-size, size)])) for value in (start, end)
        )
    kept = len(range(*slice(start, end, step).indices(d.shape[axis])))
    if kept:
        d.add("Slice", [d.constant(np.int64([item])) for item in (start, end, axis, step)])
        d.resize(axis, kept)


def split(d):
    axis = d.axis()
    if axis is None or d.shape[axis] < 2:
        return
    first = d.ints(1, d.shape[axis] - 1)
    sizes = [first, d.shape[axis] - first]
    names = [f"t{len(d.nodes)}", f"u{len(d.nodes)}"]
    d.add("Split", [d.constant(np.int64(sizes))], names, axis=axis)
    taken = d.ints(0, 1)
    d.tensor = names[taken]
    d.resize(axis, sizes[taken])


def gather(d):
    axis = d.axis()
    if axis is None:
        return
    size = d.shape[axis]
    shape = d.draw(st.sampled_from([(), (1,), (2,), (3,), (2, 2)]))
    indices = [d.ints(-size, size - 1) for _ in range(prod(shape))]
    if not shape and len(d.shape) == 1:
        return
    d.add("Gather", [d.constant(np.int64(indices).reshape(shape))], axis=axis)
    d.shape[axis : axis + 1] = shape
    if d.free is not None and d.free > axis:
        d.free += len(shape) - 1


def expand(d):
    front = d.draw(st.lists(st.integers(1, 3), max_size=1))
    target = [
        d.ints(1, 3) if size == 1 and axis != d.free else 1 for axis, size in enumerate(d.shape)
    ]
    d.add("Expand", [d.constant(np.int64([*front, *target]))])
    d.shape = [*front, *(max(pair) for pair in zip(d.shape, target, strict=True))]
    d.free = None if d.free is None else d.free + len(front)


def tile(d):
    times = [1 if axis == d.free else d.ints(1, 2) for axis in range(len(d.shape))]
    d.add("Tile", [d.constant(np.int64(times))])
    d.shape = [size * count for size, count in zip(d.shape, times, strict=True)]


def pad(d):
    axis = d.axis()
    mode = d.draw(st.sampled_from(["constant", "constant", "reflect", "edge"]))
    if axis is None:
        return
    low = -(d.shape[axis] - 1) // 2 if mode == "constant" else 0
    most = d.shape[axis] - 1 if mode == "reflect" else 3
    before, after = (d.ints(low, max(most, 0)) for _ in range(2))
    if d.shape[axis] + before + after < 1:
        return
    given = [d.constant(np.int64([before, after])), "", d.constant(np.int64([axis]))]
    d.add("Pad", given, mode=mode)
    d.resize(axis, d.shape[axis] + before + after)


def concat(d):
    """Put zeros of the same shape before or after: they are no movement of the source."""
    zeros = f"z{len(d.nodes)}"
    d.nodes.append(helper.make_node("Mul", [d.tensor, d.constant(np.float32(0))], [zeros]))
    axis = d.ints(0, len(d.shape) - 1)
    pair = d.draw(st.permutations([d.tensor, zeros]))
    d.tensor = f"t{len(d.nodes)}"
    d.nodes.append(helper.make_node("Concat", pair, [d.tensor], axis=axis))
    d.resize(axis, 2 * d.shape[axis])


def depth_to_space(d):
    if len(d.shape) == 4 and d.coefficient(1) % 4 == 0:
        d.add("DepthToSpace", blocksize=2, mode=d.draw(st.sampled_from(["DCR", "CRD"])))
        n, c, h, w = d.shape
        d.shape = [n, c // 4, h * 2, w * 2]


def space_to_depth(d):
    if len(d.shape) == 4 and d.coefficient(2) % 2 == 0 and d.coefficient(3) % 2 == 0:
        d.add("SpaceToDepth", blocksize=2)
        n, c, h, w = d.shape
        d.shape = [n, c * 4, h // 2, w // 2]


def col2im(d):
    if len(d.shape) == 3 and d.coefficient(1) % 2 == 0 and d.free != 2:
        block = d.draw(st.sampled_from([(1, 2), (2, 1)]))
        image = (block[0], block[1] * d.shape[2])
        d.add("Col2Im", [d.constant(np.int64(v)) for v in (image, block)], strides=block)
        d.shape = [d.shape[0], d.shape[1] // 2, *image]


def identity(d):
    d.add("Identity")


PLAIN = (reshape, transpose, unsqueeze, squeeze, flatten, identity)
"""Moves that lose and add nothing."""
ALL = (
    reshape, reshape, transpose, transpose, unsqueeze, squeeze, flatten, slice_, split, gather,
    expand, tile, pad, concat, depth_to_space, space_to_depth, col2im, identity,
)  # fmt: skip


@st.composite
def chains(draw, ops=ALL, *, free):
    """Draw a model from ``x`` through ``s`` = -x and some movement to ``y``."""
    shape = draw(st.lists(st.sampled_from([1, 2, 2, 4, 5, 6, 8]), min_size=1, max_size=4))
    d = Drawing(draw, [BATCH, *shape] if free else shape, 0 if free else None)
    dims = ["n", *shape] if free else list(shape)
    for op in draw(st.lists(st.sampled_from(ops), min_size=1, max_size=6)):
        if prod(d.shape) <= LARGEST and len(d.shape) <= 6:
            op(d)
    d.nodes.append(helper.make_node("Identity", [d.tensor], ["y"]))
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["s"]), *d.nodes],
        "moves",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(d.shape))],
        d.initializers,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
