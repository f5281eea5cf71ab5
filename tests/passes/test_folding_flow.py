# SPDX-License-Identifier: Apache-2.0
"""Any scale and shift that the channel flow calls free leaves the function as it is, rule by rule.

Scales are powers of two: they pass through every product and sum without rounding, so that the
outputs must agree to the last bit. Shifts round anew, a few units in the last place of values as
large as the shifted ones.
"""

import re

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhyvit_onnx.graph import tidy
from qhyvit_onnx.layout.chains import analyse
from qhyvit_onnx.passes._folding.flow import Flow
from qhyvit_onnx.passes._folding.tracer import trace
from qhyvit_onnx.passes._folding.write import Change, Writer
from qhyvit_onnx.passes._readers import FOREIGN
from qhyvit_onnx.passes.fold_norms import FoldNorms
from qhyvit_onnx.passes.normalise import Normalise
from tests.blocks import FAMILIES
from tests.conftest import drawn as numbers
from tests.random_hybrids import random_hybrid

CONSTANTS = {
    "point": (8, 8, 1, 1), "dense": (8, 8, 3, 3), "deep": (8, 1, 3, 3), "grouped": (8, 4, 3, 3),
    "up": (8, 8, 2, 2), "up_grouped": (8, 4, 2, 2), "double": (8, 16, 1, 1), "wide": (8, 12, 1, 1),
    "tall": (8, 4, 1, 1), "narrow": (4, 8, 1, 1), "bias": (8,), "each": (8, 1, 1),
    "picture": (1, 1, 6, 6), "square": (8, 8), "stack": (2, 8, 8), "vector": (8,),
    "rows": (12, 12), "head": (8, 4),
    "packed": (8, 24), "packed_bias": (24,), "turned": (4, 8), "flat_head": (288, 4),
    "mask": (12, 12), "block": (12, 8), "places_of": (1, 12, 8), "batch": (2, 8), "pair": (2, 4),
    "column3": np.int64([0, 1, 8]), "column": (12, 1), "talk": (2, 2, 1, 1),
    "square_of": np.int64([0, 4, 1, 1]),
    "half": np.float32(0.5), "zero": np.float32(0), "one": np.float32(1), "six": np.float32(6),
    "root": np.float32(2**0.5), "minus": np.int64([-1]),
    "halves": np.int64([4, 4]), "thirds": np.int64([8, 8, 8]),
    "sized": np.float32([1, 1, 2, 2]), "frame": np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
    "beside": np.int64([0, 2, 0, 0, 0, 2, 0, 0]), "crop": np.float32([0, 0, 0, 0, 1, 1, 0.5, 0.5]),
    "column_of": np.int64([0, 8, 1, 1]), "places": np.int64([2, 3]), "unit": np.float32([1]),
    "nought": np.float32([0]), "heads": np.int64([0, 0, 2, 4]), "joined": np.int64([0, 0, 8]),
    "flat": np.int64([0, 8, 36]), "merged": np.int64([0, 1, -1]), "parted": np.int64([0, 8, 6, 6]),
    "unfold1": np.int64([-1, 2, 3, 2]), "unfold2": np.int64([-1, 8, 9, 4]),
    "unfold3": np.int64([-1, 9, 8]), "fold1": np.int64([-1, 4, 9, 8]),
    "fold2": np.int64([-1, 3, 2, 2]), "fold3": np.int64([-1, 8, 6, 6]),
}  # fmt: skip

MAP = "g (float[N, 8, 6, 6] x) => (float[a, b, c, d] y)"
TOKENS = "g (float[N, 12, 8] x) => (float[a, b, c] y)"
ROWS = "g (float[N, 8] x) => (float[a, b] y)"


def drawn(build, head, body, *, tame=False):
    """Return the model of ``body``, with the constants that it names.

    ``tame``: weights keep the size of what they multiply, however many follow each other.
    """
    words = set(re.findall(r"\w+", body)) & set(CONSTANTS)
    arrays = {name: CONSTANTS[name] for name in words}
    if tame:
        arrays |= {n: tamed(n, s) for n, s in arrays.items() if isinstance(s, tuple) and len(s) > 1}
    return build(f"{head} {{ {body} }}", **arrays)


def tamed(name, shape):
    return numbers(name, shape) / np.float32(np.sqrt(max(np.prod(shape[1:]), 1)))


@pytest.fixture
def changed(state):
    """Return a function: model -> the model after a random change, and what was changed.

    Everything free is changed: every group of channels by a power of two other than one, every
    channel of a source by a shift.
    """

    def run(model, *, scales=True, shifts=True, norms=False):
        held, rng = state(model), np.random.default_rng(0)
        Normalise().run(held)
        if norms:
            FoldNorms().run(held)
        flow = trace(held.graph, analyse(held.graph).moves)
        change = random_change(flow, rng, scales=scales, shifts=shifts)
        Writer(held.graph, flow, change).write()
        tidy(held.graph)
        result = held.model()
        onnx.checker.check_model(result, full_check=True)
        names = [
            {s.tensor.name for s in flow.sources if np.any(array[s.ids] != neutral)}
            for array, neutral in ((change.scale, 1.0), (change.shift, 0.0))
        ]
        return result, *names

    return run


def random_change(flow, rng, *, scales, shifts):
    free, size = flow.solved(), flow.size
    scale, chosen = np.ones(size + 1), np.zeros(size)
    if scales:
        powers = rng.choice([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0], 2 * size + 1)[free.groups]
        scale[:-1] = np.where(free.fixed, 1.0, 2.0 ** (powers * free.signs))
    if shifts:
        for source in flow.sources:
            drawn = rng.normal(0.0, 2.0, source.ids.size)
            chosen[source.ids] = np.where(free.pinned[source.ids], 0.0, drawn)
    return Change(scale, np.append(flow.shifts(chosen), 0.0))


def feeds_of(model):
    rng = np.random.default_rng(1)
    shapes = {
        info.name: [dim.dim_value or 2 for dim in info.type.tensor_type.shape.dim]
        for info in model.graph.input
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def assert_shifted_same(want, got):
    """Shifts are about as large as the values: some ulps (6e-8) of their range, over few layers."""
    assert np.abs(got - want).max() <= 3e-6 * np.ptp(want)


MAPS = {
    # layers
    "convolution": ("p = Conv (x, point, bias) y = Conv (p, dense)", "p", "p"),
    "convolution without bias": ("p = Conv (x, point) y = Conv (p, dense)", "p", "p"),
    "depthwise": (
        "p = Conv (x, point) d = Conv <group = 8> (p, deep, bias) y = Conv (d, point)",
        "p d", "p d",
    ),
    "grouped": (
        "p = Conv (x, point) d = Conv <group = 2> (p, grouped) y = Conv (d, point)", "p d", "p d",
    ),
    "padded reader": ("p = Conv (x, point) y = Conv <pads = [1, 1, 1, 1]> (p, dense)", "p", ""),
    "one side padded": ("p = Conv (x, point) y = Conv <pads = [0, 0, 0, 1]> (p, dense)", "p", ""),
    "reader padded by name": (
        'p = Conv (x, point) y = Conv <auto_pad = "SAME_UPPER"> (p, dense)', "p", "",
    ),
    "reader with stride": ("p = Conv (x, point) y = Conv <strides = [2, 2]> (p, dense)", "p", "p"),
    "two readers, one padded": (
        "p = Conv (x, point) q = Conv (p, point) r = Conv <pads = [1, 1, 1, 1]> (p, dense)"
        " s = Add (q, r) y = Relu (s)",
        "p", "",
    ),
    "transposed convolution": (
        "p = Conv (x, point) u = ConvTranspose <strides = [2, 2]> (p, up, bias)"
        " y = Conv (u, point)",
        "p u", "u",
    ),
    "grouped transposed convolution": (
        "p = Conv (x, point) u = ConvTranspose <group = 2> (p, up_grouped) y = Conv (u, point)",
        "p u", "u",
    ),
    "weight shared by two layers": (
        "p = Conv (x, point, bias) q = Conv (p, point, bias) y = Conv (q, point)", "p q", "p q",
    ),
    "computed weight": ("p = Conv (x, point) y = Conv (x, p)", "", ""),
    "computed bias": (
        "p = Conv (x, point) m = ReduceMean <axes = [0, 2, 3], keepdims = 0> (x)"
        " y = Conv (p, point, m)",
        "", "",
    ),
    # functions of one channel
    "Relu": ("p = Conv (x, point) r = Relu (p) y = Conv (r, point)", "p", ""),
    "LeakyRelu": ("p = Conv (x, point) r = LeakyRelu (p) y = Conv (r, point)", "p", ""),
    "PRelu": ("p = Conv (x, point) r = PRelu (p, each) y = Conv (r, point)", "p", ""),
    "PRelu with a computed slope": (
        "p = Conv (x, point) m = GlobalAveragePool (x) s = Conv (m, point) r = PRelu (p, s)"
        " y = Conv (r, point)",
        "p", "",
    ),
    "SiLU": ("p = Conv (x, point) s = Sigmoid (p) m = Mul (p, s) y = Conv (m, point)", "", ""),
    "GELU": (
        "p = Conv (x, point) d = Div (p, root) e = Erf (d) f = Add (e, one) m = Mul (p, f)"
        " h = Mul (m, half) y = Conv (h, point)",
        "", "",
    ),
    "HardSwish": ("p = Conv (x, point) h = HardSwish (p) y = Conv (h, point)", "", ""),
    "Clip": ("p = Conv (x, point) h = Clip (p, zero, six) y = Conv (h, point)", "", ""),
    # windows
    "MaxPool": (
        "p = Conv (x, point) m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p)"
        " y = Conv (m, point)",
        "p", "p",
    ),
    "AveragePool": (
        "p = Conv (x, point) m = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p)"
        " y = Conv (m, point)",
        "p", "p",
    ),
    "AveragePool that counts padding": (
        "p = Conv (x, point) m = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1],"
        " count_include_pad = 1> (p) y = Conv (m, point)",
        "p", "",
    ),
    "AveragePool that counts padding by name": (
        'p = Conv (x, point) m = AveragePool <kernel_shape = [3, 3], auto_pad = "SAME_LOWER",'
        " count_include_pad = 1> (p) y = Conv (m, point)",
        "p", "",
    ),
    "AveragePool beyond the end": (
        "p = Conv (x, point) m = AveragePool <kernel_shape = [3, 3], strides = [2, 2],"
        " ceil_mode = 1> (p) y = Conv (m, point)",
        "p", "p",
    ),
    "nearest Resize": (
        'p = Conv (x, point) r = Resize <mode = "nearest"> (p, , sized) y = Conv (r, point)',
        "p", "p",
    ),
    "linear Resize": (
        'p = Conv (x, point) r = Resize <mode = "linear"> (p, , sized) y = Conv (r, point)',
        "p", "p",
    ),
    "Resize that looks outside": (
        'p = Conv (x, point) r = Resize <mode = "linear",'
        ' coordinate_transformation_mode = "tf_crop_and_resize"> (p, crop, sized)'
        " y = Conv (r, point)",
        "", "",
    ),
    "frame of zeros": (
        "p = Conv (x, point) f = Pad (p, frame) y = Conv (f, dense)", "p", "",
    ),
    "frame of ones": (
        "p = Conv (x, point) f = Pad (p, frame, one) y = Conv (f, dense)", "", "",
    ),
    "frame of copies": (
        'p = Conv (x, point) f = Pad <mode = "edge"> (p, frame) y = Conv (f, dense)', "p", "p",
    ),
    "channels of zeros": (
        "p = Conv (x, point) f = Pad (p, beside) y = Conv (f, wide)", "p", "",
    ),
    # two tensors
    "sum": (
        "p = Conv (x, point) q = Conv (x, point, bias) s = Add (p, q) y = Conv (s, point)",
        "p q", "p q",
    ),
    "difference": (
        "p = Conv (x, point) q = Conv (x, point, bias) s = Sub (p, q) y = Conv (s, point)",
        "p q", "p q",
    ),
    "residual": (
        "p = Conv (x, point) q = Conv (p, point) s = Add (q, p) y = Conv (s, point)",
        "p q", "p q",
    ),
    "residual with a padded branch": (
        "p = Conv (x, point) q = Conv <pads = [1, 1, 1, 1]> (p, dense) s = Add (q, p)"
        " y = Conv (s, point)",
        "p q", "q",
    ),
    "sum with the input": ("p = Conv (x, point) s = Add (p, x) y = Conv (s, point)", "", "p"),
    "input minus layer": ("p = Conv (x, point) s = Sub (x, p) y = Conv (s, point)", "", "p"),
    "sum of a map and its mean": (
        "p = Conv (x, point) m = GlobalAveragePool (x) q = Conv (m, point) s = Add (q, p)"
        " y = Conv (s, point)",
        "p q", "p q",
    ),
    "sum of a channel and a map": (
        "p = Conv (x, point) m = ReduceMean <axes = [1]> (p) s = Add (p, m) y = Conv (s, point)",
        "", "",
    ),
    "sum with a constant": (
        "p = Conv (x, point) r = Relu (p) s = Add (each, r) y = Conv (s, point)", "p", "",
    ),
    "sum with a constant picture": (
        "p = Conv (x, point) s = Add (p, picture) y = Conv (s, point)", "p", "p",
    ),
    "constant minus layer": (
        "p = Conv (x, point) s = Sub (picture, p) y = Conv (s, point)", "p", "p",
    ),
    "product with a constant": (
        "p = Conv (x, point) s = Mul (p, each) y = Conv (s, point)", "p", "p",
    ),
    "one number for all channels": (
        "s = Sigmoid (x) m = Mul (s, half) a = Add (m, one) y = Conv (a, point)", "a", "a",
    ),
    "one number, nothing added": (
        "s = Sigmoid (x) m = Mul (s, half) y = Conv (m, dense)", "m", "",
    ),
    "the half of a GELU": (
        "d = Div (x, root) e = Erf (d) f = Add (e, one) m = Mul (x, f) h = Mul (m, half)"
        " y = Conv (h, point)",
        "", "",
    ),
    "negative factor": ("p = Conv (x, point) s = Div (p, each) y = Conv (s, point)", "p", "p"),
    "product with a constant picture": (
        "p = Conv (x, point) s = Mul (p, picture) y = Conv (s, point)", "", "",
    ),
    "constant over layer": (
        "p = Conv (x, point) s = Div (each, p) t = Sigmoid (s) y = Conv (t, point)", "", "",
    ),
    "squeeze and excitation": (
        "p = Conv (x, point) m = GlobalAveragePool (p) e = Conv (m, point) g = Sigmoid (e)"
        " s = Mul (p, g) y = Conv (s, point)",
        "p", "",
    ),
    "a gate between two scales": (
        "p = Conv (x, point) m = GlobalAveragePool (x) g = Sigmoid (m) s = Mul (p, g)"
        " q = Conv (s, point) t = Add (p, q) y = Conv (t, point)",
        "p q", "q",
    ),
    "gate of one channel": (
        "p = Conv (x, point) m = ReduceMean <axes = [1]> (x) g = Sigmoid (m) s = Mul (p, g)"
        " y = Conv (s, point)",
        "p", "",
    ),
    "gate without a sigmoid": (
        "p = Conv (x, point) m = GlobalAveragePool (x) e = Conv (m, point) s = Mul (e, p)"
        " y = Conv (s, point)",
        "p", "",
    ),
    "product of two layers": (
        "p = Conv (x, point) q = Conv (x, point) s = Mul (p, q) y = Conv (s, point)", "p", "",
    ),
    "square": ("p = Conv (x, point) s = Mul (p, p) y = Conv (s, point)", "", ""),
    "Concat": (
        "p = Conv (x, point) q = Conv (x, point) c = Concat <axis = 1> (p, q) y = Conv (c, double)",
        "p q", "p q",
    ),
    "Concat with the input": (
        "p = Conv (x, point) c = Concat <axis = 1> (x, p) y = Conv (c, double)", "p", "p",
    ),
    "Concat with itself": (
        "p = Conv (x, point) c = Concat <axis = 1> (p, p) y = Conv (c, double)", "p", "p",
    ),
    "sum of a Concat with the input": (
        "p = Conv (x, narrow) q = Conv (x, narrow) c = Concat <axis = 1> (p, q) s = Add (c, x)"
        " y = Conv (s, point)",
        "", "p q",
    ),
    "Split": (
        "p = Conv (x, point) a, b = Split <axis = 1> (p, halves) q = Conv (a, tall)"
        " r = Conv (b, tall) s = Add (q, r) y = Relu (s)",
        "p", "p",
    ),
    "half of a Split": (
        "p = Conv (x, point) a, b = Split <axis = 1> (p, halves) s = Sigmoid (a)"
        " c = Concat <axis = 1> (s, b) y = Conv (c, point)",
        "p", "p",
    ),
    # positions
    "classifier": (
        "p = Conv (x, point) m = GlobalAveragePool (p) f = Flatten (m) h = Gemm (f, square)"
        " r = Reshape (h, column_of) y = Relu (r)",
        "p", "p",
    ),
    "every position a column": (
        "p = Conv (x, point) f = Flatten (p) h = Gemm (f, flat_head) y = Reshape (h, square_of)",
        "p", "p",
    ),
    "ReduceMean": (
        "p = Conv (x, point) m = ReduceMean <axes = [3]> (p) y = Conv (m, point)", "p", "p",
    ),
    "ReduceMax": (
        "p = Conv (x, point) m = ReduceMax <axes = [2, 3]> (p) y = Conv (m, point)", "p", "p",
    ),
    "ReduceSum": (
        "p = Conv (x, point) m = ReduceSum (p, places) y = Conv (m, point)", "p", "",
    ),
    "mean of channels": (
        "p = Conv (x, point) m = ReduceMean <axes = [1]> (p) y = Relu (m)", "", "",
    ),
    "unfold and fold": (
        "p = Conv (x, point) a = Reshape (p, unfold1) b = Transpose <perm = [0, 2, 1, 3]> (a)"
        " c = Reshape (b, unfold2) d = Transpose <perm = [0, 3, 2, 1]> (c)"
        " e = Reshape (d, unfold3) t = MatMul (e, square)"
        " f = Reshape (t, fold1) h = Transpose <perm = [0, 3, 2, 1]> (f) i = Reshape (h, fold2)"
        " j = Transpose <perm = [0, 2, 1, 3]> (i) k = Reshape (j, fold3) y = Conv (k, point)",
        "p t", "p t",
    ),
    "half unfolded and read": (
        "p = Conv (x, point) a = Reshape (p, unfold1) b = Transpose <perm = [0, 2, 1, 3]> (a)"
        " s = Sigmoid (b) y = Relu (s)",
        "", "",
    ),
    # norms
    "GroupNorm": (
        "m = Reshape (x, merged) n = InstanceNormalization (m, unit, nought)"
        " r = Reshape (n, parted) s = Mul (r, each) t = Add (s, each) y = Conv (t, point)",
        "t", "t",
    ),
    "GroupNorm without an offset": (
        "m = Reshape (x, merged) n = InstanceNormalization (m, unit, nought)"
        " r = Reshape (n, parted) s = Mul (r, each) y = Conv (s, point)",
        "s", "",
    ),
    "GroupNorm without scale and offset": (
        "m = Reshape (x, merged) n = InstanceNormalization (m, unit, nought)"
        " r = Reshape (n, parted) y = Conv (r, point)",
        "r", "r",
    ),
    "layer before a GroupNorm": (
        "p = Conv (x, point) m = Reshape (p, merged) n = InstanceNormalization (m, unit, nought)"
        " r = Reshape (n, parted) s = Mul (r, each) t = Add (s, each) y = Relu (t)",
        "", "",
    ),
    # who else looks
    "other readers": (
        "p = Conv (x, point) q = Conv (p, point) t = Tanh (p) s = Add (q, t) y = Relu (s)",
        "", "",
    ),
    "reader of the shape": (
        "p = Conv (x, point) s = Shape (p) e = Expand (one, s) q = Conv (p, point)"
        " y = Add (q, e)",
        "p", "p",
    ),
}  # fmt: skip

QKV = "q = MatMul (x, square) k = MatMul (x, square) v = MatMul (x, square)"
TURN = "t = Transpose <perm = [0, 2, 1]> (k)"
PARTED = (
    f"{QKV} qh = Reshape (q, heads) qt = Transpose <perm = [0, 2, 1, 3]> (qh)"
    " kh = Reshape (k, heads) kt = Transpose <perm = [0, 2, 3, 1]> (kh)"
    " vh = Reshape (v, heads) vt = Transpose <perm = [0, 2, 1, 3]> (vh)"
)
TOGETHER = "w = Transpose <perm = [0, 2, 1, 3]> (o) f = Reshape (w, joined) y = MatMul (f, square)"

SEQUENCES = {
    # layers
    "product": ("p = MatMul (x, square) y = MatMul (p, square)", "p", "p"),
    "product and bias": (
        "p = MatMul (x, square) b = Add (p, bias) y = MatMul (b, square)", "b", "b",
    ),
    "bias and product": (
        "p = MatMul (x, square) b = Add (bias, p) y = MatMul (b, square)", "b", "b",
    ),
    "product read beside its bias": (
        "p = MatMul (x, square) b = Add (p, bias) q = MatMul (b, square) r = MatMul (p, square)"
        " s = Add (q, r) y = Relu (s)",
        "p", "p",
    ),
    "product and rows": ("p = MatMul (x, square) b = Add (p, column) y = MatMul (b, square)",
                         "p", "p"),
    "constant on the left": ("p = MatMul (x, square) y = MatMul (rows, p)", "", ""),
    "product with a vector": (
        "p = MatMul (x, square) q = MatMul (p, vector) y = Unsqueeze (q, minus)", "", "",
    ),
    "one weight per sample": ("p = MatMul (x, square) y = MatMul (p, stack)", "p", ""),
    # norms
    "LayerNormalization": (
        "n = LayerNormalization (x, vector, bias) y = MatMul (n, square)", "n", "n",
    ),
    "LayerNormalization without an offset": (
        "n = LayerNormalization (x, vector) y = MatMul (n, square)", "n", "n",
    ),
    "LayerNormalization of one scale": (
        "n = LayerNormalization (x, unit, nought) y = MatMul (n, square)", "n", "n",
    ),
    "LayerNormalization over two axes": (
        "n = LayerNormalization <axis = 1> (x, block) y = MatMul (n, square)", "", "",
    ),
    "layer before a LayerNormalization": (
        "p = MatMul (x, square) n = LayerNormalization (p, vector, bias) y = MatMul (n, square)",
        "n", "n",
    ),
    "LayerNormalization read by a residual": (
        "n = LayerNormalization (x, vector, bias) p = MatMul (n, square) s = Add (n, p)"
        " y = MatMul (s, square)",
        "n p", "n p",
    ),
    "constant factor": (
        "s = Sigmoid (x) m = Mul (s, vector) y = MatMul (m, square)", "m", "",
    ),
    "one number for all tokens": (
        "s = Sigmoid (x) m = Mul (half, s) a = Add (one, m) y = MatMul (a, square)", "a", "a",
    ),
    "constant factor and offset": (
        "s = Sigmoid (x) m = Mul (vector, s) a = Add (bias, m) y = MatMul (a, square)", "a", "a",
    ),
    # movement
    "Concat of positions": (
        "p = MatMul (x, square) q = MatMul (x, square) c = Concat <axis = 1> (p, q)"
        " y = MatMul (c, square)",
        "", "",
    ),
    "sum with position embeddings": (
        "p = MatMul (x, square) s = Add (p, places_of) y = MatMul (s, square)", "p", "p",
    ),
    "pooled": (
        "p = MatMul (x, square) m = ReduceMean <axes = [1], keepdims = 0> (p)"
        " h = Gemm (m, square) r = Reshape (h, column3) y = Relu (r)",
        "p", "p",
    ),
    # attention
    "attention": (
        f"{QKV} {TURN} s = MatMul (q, t) p = Softmax (s) o = MatMul (p, v) y = MatMul (o, square)",
        "q k v", "k v",
    ),
    "attention of a packed projection": (
        "a = MatMul (x, packed) b = Add (a, packed_bias) q, k, v = Split <axis = 2> (b, thirds)"
        f" {TURN} s = MatMul (q, t) p = Softmax (s) o = MatMul (p, v) y = MatMul (o, square)",
        "b", "b",
    ),
    "attention with heads": (
        f"{PARTED} s = MatMul (qt, kt) p = Softmax (s) o = MatMul (p, vt) {TOGETHER}",
        "q k v", "k v",
    ),
    "attention with a factor and a mask": (
        f"{PARTED} s = MatMul (qt, kt) u = Div (s, root) z = Add (u, mask) p = Softmax (z)"
        f" o = MatMul (p, vt) {TOGETHER}",
        "q k v", "k v",
    ),
    "attention with a factor for each row": (
        f"{QKV} {TURN} s = MatMul (q, t) u = Mul (s, column) p = Softmax (u) o = MatMul (p, v)"
        " y = MatMul (o, square)",
        "q k v", "v",
    ),
    "attention that divides by the scores": (
        f"{QKV} {TURN} s = MatMul (q, t) u = Div (half, s) p = Softmax (u) o = MatMul (p, v)"
        " y = MatMul (o, square)",
        "q k v", "v",
    ),
    "attention whose scores something else reads": (
        f"{QKV} {TURN} s = MatMul (q, t) p = Softmax (s) o = MatMul (p, v) r = Relu (s)"
        " z = MatMul (r, v) e = Add (o, z) y = MatMul (e, square)",
        "q k v", "",
    ),
    "attention over the other axis": (
        f"{QKV} {TURN} s = MatMul (q, t) p = Softmax <axis = 1> (s) o = MatMul (p, v)"
        " y = MatMul (o, square)",
        "q k v", "",
    ),
    "talking heads": (
        f"{PARTED} s = MatMul (qt, kt) z = Conv (s, talk) p = Softmax (z) e = Conv (p, talk)"
        f" o = MatMul (e, vt) {TOGETHER}",
        "q k v", "",
    ),
    "attention of one tensor": (
        "p = MatMul (x, square) t = Transpose <perm = [0, 2, 1]> (p) s = MatMul (p, t)"
        " e = Softmax (s) y = MatMul (e, x)",
        "", "",
    ),
    "keys that are values": (
        f"q = MatMul (x, square) k = MatMul (x, square) {TURN} s = MatMul (q, t) p = Softmax (s)"
        " o = MatMul (p, k) y = MatMul (o, square)",
        "q k", "k",
    ),
    "attention without a softmax": (
        f"{QKV} {TURN} s = MatMul (q, t) p = Relu (s) o = MatMul (p, v) y = MatMul (o, square)",
        "q k v", "",
    ),
    "linear attention": (
        f"{QKV} {TURN} u = Relu (t) e = MatMul (u, v) r = Relu (q) o = MatMul (r, e)"
        " y = MatMul (o, square)",
        "v", "",
    ),
}  # fmt: skip

MATRICES = {
    "Gemm": ("p = Gemm (x, square, bias) y = Gemm (p, head)", "p", "p"),
    "turned Gemm": ("p = Gemm <transB = 1> (x, square) y = Gemm <transB = 1> (p, turned)",
                    "p", "p"),
    "Gemm with factors": (
        "p = Gemm <alpha = 0.5, beta = 2.0> (x, square, bias)"
        " y = Gemm <alpha = 0.25, beta = 0.5> (p, square, bias)",
        "p", "p",
    ),
    "Gemm with one number": ("p = Gemm (x, square, half) y = Gemm (p, head)", "p", "p"),
    "Gemm with rows": ("p = Gemm (x, square) q = Gemm (p, square, batch) y = Gemm (q, head)",
                       "", ""),
    "Gemm of a turned input": ("p = Gemm (x, square) y = Gemm <transA = 1> (p, pair)", "", ""),
}  # fmt: skip

CASES = [
    pytest.param(head, *case, id=name)
    for head, cases in ((MAP, MAPS), (TOKENS, SEQUENCES), (ROWS, MATRICES))
    for name, case in cases.items()
]


@pytest.mark.parametrize(("head", "body", "scaled", "shifted"), CASES)
def test_what_is_free_and_that_it_is(build, changed, run_model, head, body, scaled, shifted):
    model = drawn(build, head, body)
    feeds = feeds_of(model)
    (want,) = run_model(model, feeds)
    result, by_scale, _ = changed(model, shifts=False)
    np.testing.assert_array_equal(run_model(result, feeds)[0], want)
    result, _, by_shift = changed(model, scales=False)
    assert_shifted_same(want, run_model(result, feeds)[0])
    assert (by_scale, by_shift) == (set(scaled.split()), set(shifted.split()))


def test_what_the_user_gets_stays(build, changed, run_model):
    """A tensor in the middle that is an output, behind movement too."""
    head = "g (float[N, 8, 6, 6] x) => (float[a, b, c, d] y, float[e, f] z, float[h, i, j, k] p)"
    body = """
        p = Conv (x, point) q = Conv (p, point) r = Conv (q, point) z = Flatten (q)
        y = Conv (r, dense)"""
    model = drawn(build, head, body)
    result, scaled, shifted = changed(model)
    assert (scaled, shifted) == ({"r"}, {"r"})
    for want, got in zip(*(run_model(m, feeds_of(model)) for m in (model, result)), strict=True):
        assert_shifted_same(want, got)


@pytest.mark.parametrize(
    "branch", ["u = Add (p, bias)", "u = Relu (p)", "w = Identity (x) u = Add (w, p)"]
)
def test_what_control_flow_reads_stays(build, changed, run_model, branch):
    """Even an Add of a constant, that would be the bias of the product were it outside."""
    head = "g (float[N, 12, 8] x, bool c) => (float[a, b, d] y)"
    body = f"""
        p = MatMul (x, square) q = MatMul (x, square)
        e = If (c) <then_branch = t () => (float[k, l, m] u) {{ {branch} }},
                    else_branch = f () => (float[n, o, r] v) {{ v = Tanh (x) }}>
        h = MatMul (q, square) y = Add (h, e)"""
    model = drawn(build, head, body)
    result, scaled, shifted = changed(model)
    assert (scaled, shifted) == ({"q"}, {"q"})
    for chosen in (True, False):
        feeds = {"x": feeds_of(model)["x"], "c": np.array(chosen)}
        want, got = (run_model(m, feeds)[0] for m in (model, result))
        assert_shifted_same(want, got)


TOKENS_OF = "{y}f = Reshape ({x}, flat) {y}t = Transpose <perm = [0, 2, 1]> ({y}f)"
MAP_OF = "{y}u = Transpose <perm = [0, 2, 1]> ({y}o) {y} = Reshape ({y}u, parted)"
STEPS = (
    "{y} = Conv ({x}, point, bias)",
    "{y} = Conv ({x}, point)",
    "{y} = Conv <pads = [1, 1, 1, 1]> ({x}, dense, bias)",
    "{y} = Conv <pads = [1, 1, 1, 1], group = 8> ({x}, deep)",
    "{y} = ConvTranspose <pads = [1, 1, 1, 1]> ({x}, dense, bias)",
    "{y} = Relu ({x})",
    "{y} = LeakyRelu ({x})",
    "{y} = Add ({x}, {other})",
    "{y} = Add ({x}, {other})",
    "{y} = Sub ({other}, {x})",
    "{y} = Add (each, {x})",
    "{y} = Sub (picture, {x})",
    "{y} = Mul ({x}, each)",
    "{y}c = Concat <axis = 1> ({x}, {other}) {y} = Conv ({y}c, double)",
    "{y}a, {y}b = Split <axis = 1> ({x}, halves) {y} = Concat <axis = 1> ({y}b, {y}a)",
    "{y} = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({x})",
    "{y} = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({x})",
    "{y}m = GlobalAveragePool ({x}) {y}c = Conv ({y}m, point, bias) {y} = Add ({other}, {y}c)",
    "{y}m = GlobalAveragePool ({x}) {y}c = Conv ({y}m, point) {y}s = Sigmoid ({y}c)"
    " {y} = Mul ({x}, {y}s)",
    "{y}m = Reshape ({x}, merged) {y}n = InstanceNormalization ({y}m, unit, nought)"
    " {y}r = Reshape ({y}n, parted) {y}s = Mul ({y}r, each) {y} = Add ({y}s, each)",
    f"{TOKENS_OF} {{y}}o = MatMul ({{y}}t, square) {MAP_OF}",
    f"{TOKENS_OF} {{y}}o = LayerNormalization ({{y}}t, vector, bias) {MAP_OF}",
    f"{TOKENS_OF} {{y}}q = MatMul ({{y}}t, square) {{y}}k = MatMul ({{y}}t, square)"
    " {y}v = MatMul ({y}t, square) {y}j = Transpose <perm = [0, 2, 1]> ({y}k)"
    f" {{y}}s = MatMul ({{y}}q, {{y}}j) {{y}}p = Softmax ({{y}}s)"
    f" {{y}}o = MatMul ({{y}}p, {{y}}v) {MAP_OF}",
)
"""From a map to a map, each with constants that others have too; ``other`` is any map before."""


def random_net(build, seed):
    """Return a net of a dozen steps between two layers."""
    rng = np.random.default_rng(seed)
    texts, maps = ["m0 = Conv (x, point, bias)"], ["m0"]
    for step in rng.integers(len(STEPS), size=12):
        name, other = f"m{len(maps)}", maps[rng.integers(len(maps))]
        texts.append(STEPS[step].format(y=name, x=maps[-1], other=other))
        maps.append(name)
    body = " ".join([*texts, f"y = Conv ({maps[-1]}, point)"])
    return drawn(build, MAP, body, tame=True)


@pytest.mark.parametrize("seed", range(40))
def test_random_nets_keep_their_function(build, changed, run_model, seed):
    model = random_net(build, seed)
    feeds = feeds_of(model)
    (want,) = run_model(model, feeds)
    result, scaled, _ = changed(model, shifts=False)
    np.testing.assert_array_equal(run_model(result, feeds)[0], want)
    result, _, shifted = changed(model, scales=False)
    # a dozen steps: more roundings, and sums that a shift makes larger than what is left of them
    assert np.abs(run_model(result, feeds)[0] - want).max() <= 1e-5 * np.ptp(want)
    assert scaled | shifted


@pytest.mark.parametrize("family", FAMILIES)
def test_families_keep_their_function(changed, run_model, family):
    model = FAMILIES[family]()
    feeds = feeds_of(model)
    (want,) = run_model(model, feeds)
    scaled_only, scaled, _ = changed(model, shifts=False, norms=True)
    both, _, shifted = changed(model, norms=True)
    assert len(scaled) >= 2
    assert bool(shifted) == (family != "convolutional")  # SiLU and gates let no shift through
    for result in (scaled_only, both):
        # FoldNorms rounds as well, and softmax and some twenty layers carry all of it on
        np.testing.assert_allclose(run_model(result, feeds)[0], want, atol=1e-5 * np.ptp(want))


@pytest.mark.parametrize("seed", [5, 7, 12, 13, 19, 22, 23])  # in most, SiLU and the like hold all
def test_random_hybrids_keep_their_function(build, changed, run_model, seed):
    text, arrays = random_hybrid(seed)
    model = build(text, **arrays)
    feeds = feeds_of(model)
    results = run_model(model, feeds)
    exact, scaled, _ = changed(model, shifts=False)
    both, _, shifted = changed(model)
    assert scaled
    assert shifted
    for want, same, close in zip(
        results, run_model(exact, feeds), run_model(both, feeds), strict=True
    ):
        np.testing.assert_array_equal(same, want)
        # up to thirty layers behind each other, each adding a few ulps
        assert np.abs(close - want).max() <= 2e-5 * np.ptp(want)


def flow_of(size):
    """Return a flow and the numbers of its channels."""
    flow = Flow()
    return flow, flow.new((size,))


def test_ties_make_groups_and_signs():
    flow, ids = flow_of(5)
    flow.tie(ids[:1], ids[1:2], -1)
    flow.tie(ids[1:2], ids[2:3], -1)
    flow.tie(ids[2:3], ids[3:4], 1)
    free = flow.solved()
    assert len(set(free.groups[:4])) == 1
    assert free.groups[4] not in free.groups[:4]
    np.testing.assert_array_equal(free.signs[:4] * free.signs[0], [1, -1, 1, 1])
    assert not free.fixed.any()


def test_what_is_its_own_reciprocal_is_fixed():
    flow, ids = flow_of(4)
    flow.tie(ids[:1], ids[1:2], 1)
    flow.tie(ids[1:2], ids[:1], -1)
    flow.tie(ids[2:3], ids[1:2], -1)
    np.testing.assert_array_equal(flow.solved().fixed, [True, True, True, False])


def test_a_fixed_channel_fixes_its_group_and_pins_nothing():
    flow, ids = flow_of(4)
    flow.tie(ids[:1], ids[1:2], -1)
    flow.tie(ids[1:2], ids[2:3], 1)
    flow.fix(ids[2:3])
    free = flow.solved()
    np.testing.assert_array_equal(free.fixed, [True, True, True, False])
    assert not free.pinned.any()


def test_a_tie_to_what_is_unknown_fixes():
    flow, ids = flow_of(2)
    flow.tie(ids, np.array([FOREIGN, FOREIGN]), 1)
    assert flow.solved().fixed.all()


def test_pins_go_from_sums_to_parts():
    flow, ids = flow_of(4)
    total = flow.derive(ids[:2])  # channels 4, 5
    flow.add(total, ids[2:], -1.0)
    end = flow.derive(total)  # 6, 7
    flow.pin(end[:1])
    np.testing.assert_array_equal(np.flatnonzero(flow.solved().pinned), [0, 2, 4, 6])
    flow.pin(ids[1:2])  # a part that has no shift leaves the rest free
    np.testing.assert_array_equal(np.flatnonzero(flow.solved().pinned), [0, 1, 2, 4, 6])


def test_shifts_add_up():
    flow, ids = flow_of(2)
    scaled = flow.derive(ids[:1], np.array([-3.0]))  # channel 2
    total = flow.derive(scaled)  # 3
    flow.add(total, ids[1:], 0.5)
    flow.derive(total, None)  # 4: none arrives
    np.testing.assert_allclose(flow.shifts(np.array([1.0, 4.0, 0, 0, 0])), [1, 4, -3, -1, 0])


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_free_scales_satisfy_every_tie_and_no_more_are_fixed_than_must(size, seed):
    """Against linear algebra: log t must solve log a = s log b, and be 0 where it is fixed."""
    rng = np.random.default_rng(seed)
    flow, ids = flow_of(size)
    rows = []
    for _ in range(rng.integers(0, 2 * size)):
        a, b, sign = rng.integers(size), rng.integers(size), int(rng.choice([-1, 1]))
        flow.tie(ids[a : a + 1], ids[b : b + 1], sign)
        rows.append(np.eye(size)[a] - sign * np.eye(size)[b])
    for channel in np.flatnonzero(rng.random(size) < 0.1):
        flow.fix(ids[channel : channel + 1])
        rows.append(np.eye(size)[channel])
    free = flow.solved()
    drawn_logs = rng.standard_normal(2 * size)[free.groups]
    logs = np.where(free.fixed, 0.0, drawn_logs * free.signs)
    system = np.array(rows).reshape(-1, size)
    np.testing.assert_allclose(system @ logs, 0.0, atol=1e-12)
    open_groups = len(set(free.groups[~free.fixed]))
    assert open_groups == size - (np.linalg.matrix_rank(system) if rows else 0)
