# SPDX-License-Identifier: Apache-2.0
"""DetectBridges names regions and the hand-overs between them; it changes nothing."""

import random
from collections import Counter

import numpy as np
import pytest

from qhyvit_onnx.facts import BRIDGES, REGIONS
from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.passes._bridges import anchors
from qhyvit_onnx.passes._bridges.ancestry import Ancestry
from qhyvit_onnx.passes.detect_bridges import DetectBridges
from qhyvit_onnx.passes.normalise import Normalise
from tests.blocks import FAMILIES, mobilevit_v1, mobilevit_v2

CONV = "Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]>"
TO_TOKENS = "r = Reshape (c, flat) t = Transpose <perm = [0, 2, 1]> (r)"
QKV = "[to_q] q = MatMul (t, wq) [to_k] k = MatMul (t, wk) [to_v] v = MatMul (t, wv)"
SOFTMAX = """
    kt = Transpose <perm = [0, 2, 1]> (k)
    [qk] s = MatMul (q, kt) p = Softmax (s) [av] o = MatMul (p, v)
"""
BACK = f"""
    [proj] u = MatMul (o, wo) h = Transpose <perm = [0, 2, 1]> (u) m = Reshape (h, map)
    [back] y = {CONV} (m, w)
"""
HYBRID = f"[local] c = {CONV} (x, w) {TO_TOKENS} {QKV} {SOFTMAX} {BACK}"
ARRAYS = {
    "w": (16, 16, 3, 3), "point": (16, 16, 1, 1), "one": (1, 16, 7, 7), "two": (16, 16, 2, 2),
    "flat": np.int64([0, 16, -1]), "map": np.int64([0, 16, 8, 8]),
    "outer_k": np.int64([0, 64, 16, 1]), "outer_v": np.int64([0, 64, 1, 16]),
    "at1": np.int64([1]), "at3": np.int64([3]), "halves": np.int64([8, 8]), "mix": (1, 1, 8, 8),
    "scales": np.float32([1, 1, 2, 2]), "square": (8, 8), "whole": (16, 16, 8, 8),
    "score": (1, 16, 1, 1), "column": np.int64([0, -1, 1]), "pixel": np.int64([0, 16, 1, 1]),
    "line": np.int64([0, 1, 16]), "groups": np.int64([0, 4, 4, 8, 8]), "near": (1, 1, 3),
    "big": np.int64([0, 16, 16, 16]),
    **dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16)),
}  # fmt: skip


@pytest.fixture
def detect(state):
    """Return a function: model -> (state, outcome)."""

    def run(model):
        held = state(model)
        Normalise().run(held)
        return held, DetectBridges().run(held)

    return run


@pytest.fixture
def written(build):
    """Return a function: body -> model, with the arrays that the body names."""

    def make(body, out="a, b, c, d", shape="1, 16, 8, 8"):
        for mark in "(),":
            body = body.replace(mark, f" {mark} ")
        used = {name: array for name, array in ARRAYS.items() if name in body.split()}
        return build(f"g (float[{shape}] x) => (float[{out}] y) {{ {body} }}", **used)

    return make


def bridges(held):
    return [(bridge.direction, bridge.size) for bridge in held.get(BRIDGES)]


# Sizes: every family works on maps of 8x8 (stem of stride 2), EdgeNeXt and LeViT on 4x4 (stride 4).
# EfficientFormerV2 attends at 4x4 and writes 8x8, halves once, then stays at 4x4.
EXPECTED = {
    "MobileViT": [("in", "8x8"), ("out", "8x8")],
    "MobileViTv2": [("in", "8x8"), ("out", "8x8")],
    "EfficientFormer": [("in", "8x8")],  # it ends in tokens
    "EfficientFormerV2": [("in", "8x8"), ("out", "8x8"), ("in", "4x4"), ("out", "4x4")],
    "Mobile-Former": [("in", "8x8"), ("out", "8x8")] * 2,  # both ways in each of two blocks
    "EdgeNeXt": [("in", "4x4"), ("out", "4x4")],
    "EfficientViT": [("in", "8x8"), ("out", "8x8")],  # two blocks of one size
    "LeViT": [("in", "4x4")],  # attention to the end
    "ViT": [],
    "convolutional": [],
    "DETR": [("in", "8x8")] * 3,  # the encoder, and two decoder layers that ask it
}
NOTES = {
    "EfficientFormerV2": "bridges: 2 into global regions, 2 out of them",
    "Mobile-Former": "cross attentions: 2 in, 2 out",
    "LeViT": "bridges: 1 into global regions, 0 out of them",
    "ViT": "no bridges: no local region",
    "convolutional": "no bridges: a pure convolutional net",
    "DETR": "bridges: 1 into global regions, 0 out of them; cross attentions: 2 in, 0 out",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(detect, family):
    held, outcome = detect(FAMILIES[family]())
    assert bridges(held) == EXPECTED[family]
    assert outcome.note == NOTES.get(family, outcome.note)
    assert outcome.changed == 0


INSIDE = {
    ("MobileViT", 0): {"conv_1x1", "qkv"},
    ("MobileViT", 1): {"fc22", "last_norm", "conv_proj", "concat", "conv_fusion"},
    ("MobileViTv2", 0): {"conv_1x1", "qkv_proj"},
    ("MobileViTv2", 1): {"mlp.fc22", "last_norm", "conv_proj"},
    ("EfficientFormer", 0): {"mlp.fc22", "qkv"},
    ("EfficientFormerV2", 0): {"strided.stride_conv", "strided.q", "strided.k", "strided.v"},
    ("EfficientFormerV2", 1): {"strided.av", "strided.upsample", "strided.proj"},
    ("EfficientFormerV2", 2): {"down.q.local", "down.q.proj", "down.k", "down.v",
                               "strided.mlp.fc2", "down.mlp.fc2", "plain.q", "plain.k", "plain.v"},
    ("EfficientFormerV2", 3): {"down.av", "down.proj", "down.mlp.fc1", "down.mlp.mid",
                               "plain.av", "plain.proj", "plain.mlp.fc1", "plain.mlp.mid"},
    ("Mobile-Former", 0): {"lite.point", "0.to_former.av"},  # constants ask: no product of q
    ("Mobile-Former", 1): {"0.fc2", "0.to_mobile.k", "0.to_mobile.v"},
    ("Mobile-Former", 2): {"0.mobile.project", "1.to_former.qk", "1.to_former.av"},
    ("Mobile-Former", 3): {"1.fc2", "1.to_mobile.k", "1.to_mobile.v"},
    ("EdgeNeXt", 0): {"encode.mlp.fc2", "split_conv", "qkv"},
    ("EdgeNeXt", 1): {"fc2", "next"},
    ("EfficientViT", 0): {"stem", "0.qkv", "0.aggregate", "0.aggregate.point", "0.mlp.fc2",
                          "1.qkv", "1.aggregate", "1.aggregate.point"},
    ("LeViT", 0): {"stem2", "qkv"},
    ("DETR", 0): {"input_proj", "encoder.qkv"},
    ("DETR", 1): {"encoder.fc2", "0.cross.k", "0.cross.v"},
    ("DETR", 2): {"encoder.fc2", "1.cross.k", "1.cross.v"},
}  # fmt: skip
ENDS = {"last_norm", "concat", "strided.upsample"}
"""Nodes of INSIDE that are neither layer nor product."""


@pytest.mark.parametrize(("family", "index"), INSIDE)
def test_layers_at_both_ends(detect, family, index):
    held, _ = detect(FAMILIES[family]())
    found, wanted = held.get(BRIDGES)[index], INSIDE[family, index]
    layers = {n.name for n in held.graph.nodes if n.op in {"Conv", "MatMul", "ReduceSum"}}
    constant_query = {"0.to_former.qk"}
    assert set(found.nodes) & layers - constant_query == wanted - ENDS
    assert wanted <= set(found.nodes)


def test_everything_between_is_inside(detect):
    held, _ = detect(mobilevit_v1())
    entry, way_out = held.get(BRIDGES)
    unfold = ["reshape", "transpose", "reshape2", "transpose2", "reshape3"]
    assert list(entry.nodes) == ["conv_1x1", *unfold, "norm1", "qkv", "qkv.bias"]
    ops = {node.name: node.op for node in held.graph.nodes}
    assert [ops[name] for name in way_out.nodes] == [
        "MatMul", "Add", "Add", "LayerNormalization", "Reshape", "Transpose", "Reshape",
        "Transpose", "Reshape", "Conv", "Sigmoid", "Mul", "Concat", "Conv",
    ]  # fmt: skip


def test_boundary_tensors(detect):
    held, _ = detect(mobilevit_v1())
    nodes = {node.name: node for node in held.graph.nodes}
    entry, way_out = held.get(BRIDGES)
    assert entry.inputs == (nodes["conv_1x1"].inputs[0].name,)
    assert entry.outputs == ("qkv.bias",)  # the bias stands apart, and belongs to its layer
    assert way_out.inputs == (nodes["fc22"].inputs[0].name,)
    assert way_out.outputs == ("conv_fusion",)


def test_projections_of_separable_attention_in_three_convolutions(detect):
    held, _ = detect(mobilevit_v2(separate=True))
    entry = held.get(BRIDGES)[0]
    assert entry.outputs == ("q", "k", "v")
    assert {"conv_1x1", "q", "k", "v"} <= set(entry.nodes)


def test_two_stages_are_four_bridges(detect):
    held, _ = detect(mobilevit_v1(stages=2))
    assert bridges(held) == [("in", "8x8"), ("out", "8x8"), ("in", "4x4"), ("out", "4x4")]


def test_reasons(detect):
    held, _ = detect(FAMILIES["EfficientViT"]())
    assert [bridge.why for bridge in held.get(BRIDGES)] == [
        "8x8: local features reach attention at 0.qkv_product and 1 more",
        "8x8: attention reaches local mixing at 0.mlp.mid and 1 more",
    ]
    held, _ = detect(FAMILIES["Mobile-Former"]())
    assert [bridge.why for bridge in held.get(BRIDGES)][:2] == [
        "8x8: tokens ask features at 0.to_former.av",
        "8x8: features ask tokens at 0.to_mobile.av",
    ]


def test_regions_of_mobilevit(detect):
    held, _ = detect(mobilevit_v1())
    found = held.get(REGIONS)
    assert [(r.side, r.size) for r in found] == [
        ("local", "8x8"), ("global", "8x8"), ("local", "8x8"),
    ]  # fmt: skip
    assert [(r.nodes[0], r.nodes[-1]) for r in found][:2] == [
        ("stem", "conv_1x1"), ("reshape", "fc2.bias2"),
    ]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_node_is_in_one_region(detect, family):
    held, _ = detect(FAMILIES[family]())
    inside = Counter(name for region in held.get(REGIONS) for name in region.nodes)
    assert inside == Counter(node.name for node in held.graph.nodes)


@pytest.mark.parametrize("family", ["MobileViT", "MobileViTv2", "EfficientFormer", "LeViT"])
def test_a_bridge_leads_from_one_region_into_another(detect, family):
    held, _ = detect(FAMILIES[family]())
    sides = {name: region.side for region in held.get(REGIONS) for name in region.nodes}
    for bridge in held.get(BRIDGES):
        order = ("local", "global") if bridge.direction == "in" else ("global", "local")
        assert (sides[bridge.nodes[0]], sides[bridge.nodes[-1]]) == order


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fixed_batch_gives_the_same(detect, family):
    free, fixed = FAMILIES[family](), FAMILIES[family]()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert detect(free)[0].get(BRIDGES) == detect(fixed)[0].get(BRIDGES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_nodes_plays_no_role(detect, family):
    model = FAMILIES[family]()
    held, outcome = detect(model)
    shuffle(model, random.Random(1))
    other, other_outcome = detect(model)
    assert contents(other) == contents(held)
    assert other_outcome.note == outcome.note


def contents(held):
    """Return what bridges and regions hold, whatever their order."""
    found = [(b.direction, b.size, frozenset(b.nodes)) for b in held.get(BRIDGES)]
    return Counter(found + [(r.side, r.size, frozenset(r.nodes)) for r in held.get(REGIONS)])


def shuffle(model, rng):
    """Put the nodes into another topological order."""
    left, ready = list(model.graph.node), {"x", *(a.name for a in model.graph.initializer), ""}
    del model.graph.node[:]
    while left:
        able = [node for node in left if ready.issuperset(node.input)]
        node = rng.choice(able)
        left.remove(node)
        ready.update(node.output)
        model.graph.node.append(node)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_play_no_role(detect, family):
    model = FAMILIES[family]()
    held, _ = detect(model)
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"
    other, _ = detect(model)
    places = {node.name: index for index, node in enumerate(held.graph.nodes)}
    others = {node.name: index for index, node in enumerate(other.graph.nodes)}
    assert [[others[name] for name in b.nodes] for b in other.get(BRIDGES)] == [
        [places[name] for name in b.nodes] for b in held.get(BRIDGES)
    ]


def test_two_runs_find_the_same(detect):
    (first, outcome), (second, again) = detect(mobilevit_v1()), detect(mobilevit_v1())
    assert again == outcome
    assert second.get(BRIDGES) == first.get(BRIDGES)
    assert second.get(REGIONS) == first.get(REGIONS)


def test_nothing_is_changed(state):
    held = state(mobilevit_v1())
    Normalise().run(held)
    before = held.model().SerializeToString(deterministic=True)
    DetectBridges().run(held)
    assert held.model().SerializeToString(deterministic=True) == before


ATTENTIONS = {
    "softmax": SOFTMAX,
    "linear": "kt = Transpose <perm = [0, 2, 1]> (k) z = MatMul (kt, v) o = MatMul (q, z)",
    "einsum": """
        s = Einsum <equation = "nqc,nkc->nqk"> (q, k) p = Softmax (s)
        o = Einsum <equation = "nqk,nkc->nqc"> (p, v)
    """,
    "sum of outer products": """
        ke = Reshape (k, outer_k) ve = Reshape (v, outer_v) z = Mul (ke, ve)
        s = ReduceSum <keepdims = 0> (z, at1) o = MatMul (q, s)
    """,
    "weights over positions": """
        p = Softmax <axis = 1> (q) z = Mul (p, k) s = ReduceSum (z, at1) o = Mul (v, s)
    """,
    "normalised weights": """
        n = ReduceL2 <axes = [1]> (q) p = Div (q, n) z = Mul (p, k)
        s = ReduceSum (z, at1) o = Mul (v, s)
    """,
}


@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)
def test_kinds_of_attention(detect, written, attention):
    body = f"[local] c = {CONV} (x, w) {TO_TOKENS} {QKV} {attention} {BACK}"
    held, _ = detect(written(body))
    entry, way_out = held.get(BRIDGES)
    assert (entry.direction, way_out.direction) == ("in", "out")
    assert {"local", "to_q", "to_k", "to_v"} <= set(entry.nodes)
    assert {"proj", "back"} <= set(way_out.nodes)


def test_a_fused_attention(state, build):
    body = HYBRID.replace(SOFTMAX, "[fused] o = com.microsoft.MultiHeadAttention (q, k, v)")
    used = {name: ARRAYS[name] for name in ("w", "flat", "map", "wq", "wk", "wv", "wo")}
    head = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>\n'
    text = f"{head}g (float[1, 16, 8, 8] x) => (float[a, b, c, d] y) {{ {body} }}"
    held = state(build(text, **used))
    DetectBridges().run(held)
    assert [bridge.direction for bridge in held.get(BRIDGES)] == ["in", "out"]
    assert {"local", "to_q", "to_k", "to_v"} <= set(held.get(BRIDGES)[0].nodes)


MEAN = "y = ReduceMean <axes = [2, 3]>"
LOOKALIKES = {
    "convolutions": f"c = {CONV} (x, w) y = {CONV} (c, w)",
    "class scores": f"c = {CONV} (x, w) y = Softmax <axis = 1> (c)",
    "a gate by itself": f"c = {CONV} (x, w) g = Sigmoid (c) y = Mul (c, g)",
    "SiLU before the pooling": f"c = {CONV} (x, w) g = Sigmoid (c) m = Mul (c, g) {MEAN} (m)",
    "a variance": f"c = {CONV} (x, w) m = Mul (c, c) {MEAN} (m)",
    "a gated linear unit before the pooling": f"""
        c = {CONV} (x, w) a, b = Split <axis = 1> (c, halves) g = Sigmoid (b) m = Mul (a, g)
        {MEAN} (m)
    """,
    "pooling by its own softmax": f"""
        c = {CONV} (x, w) p = Softmax <axis = 3> (c) m = Mul (c, p) y = ReduceSum (m, at3)
    """,
    "a spatial gate before the pooling": f"""
        c = {CONV} (x, w) s = Conv <pads = [3, 3, 3, 3]> (c, one) g = Sigmoid (s) m = Mul (c, g)
        {MEAN} (m)
    """,
    "an Einsum that gates": f"""
        c = {CONV} (x, w) g = ReduceMean <axes = [2, 3], keepdims = 0> (c) s = Sigmoid (g)
        y = Einsum <equation = "nchw,nc->nchw"> (c, s)
    """,
    "a gate made of pooled context": f"""
        c = {CONV} (x, w) l = Conv (c, score) a = Reshape (l, column) p = Softmax <axis = 1> (a)
        r = Reshape (c, flat) g = MatMul (r, p) h = Reshape (g, pixel) i = Conv (h, point)
        s = Sigmoid (i) m = Mul (c, s) y = {CONV} (m, w)
    """,
    "positions mixed by weights": f"c = {CONV} (x, w) m = MatMul (mix, c) y = Relu (m)",
    "weights repeated at run time": f"""
        c = {CONV} (x, w) s = Shape <end = 1> (x) n = Concat <axis = 0> (s, at1, at1, at1)
        e = Expand (mix, n) y = MatMul (e, c)
    """,
}


@pytest.mark.parametrize("body", LOOKALIKES.values(), ids=LOOKALIKES)
def test_lookalikes_are_pure_convolutional_nets(detect, written, body):
    held, outcome = detect(written(body, shape="N, 16, 8, 8"))
    assert held.get(BRIDGES) == ()
    assert outcome.note == "no bridges: a pure convolutional net"


@pytest.mark.parametrize(
    ("body", "note"),
    [
        ("y = Conv (x, point)", "no bridges: nothing mixes positions"),
        ("y = Exp (x)", "no bridges: nothing mixes positions"),
        (f"c = Identity (x) {TO_TOKENS} {QKV} {SOFTMAX} h = Transpose <perm = [0, 2, 1]> (o)"
         " y = Reshape (h, map)", "no bridges: no local region"),
        (f"[blown] c = Resize (x, , scales) d = Relu (c) {TO_TOKENS} {QKV} {SOFTMAX}"
         " h = Transpose <perm = [0, 2, 1]> (o) y = Reshape (h, big)",
         "no bridges: no local region"),  # the picture is resized before the first layer
        (f"c = Identity (x) {TO_TOKENS} {QKV} {SOFTMAX} h = Transpose <perm = [0, 2, 1]> (o)"
         " m = Reshape (h, map) y = Resize (m, , scales)",
         "no bridges: no local region"),  # the scores are resized after the last layer
    ],
    ids=["pointwise", "nothing", "only attention", "resized input", "resized output"],
)  # fmt: skip
def test_why_there_is_no_bridge(detect, written, body, note):
    held, outcome = detect(written(body))
    assert held.get(BRIDGES) == ()
    assert outcome.note == note


def test_what_mixes_nothing_has_no_region(detect, written):
    assert detect(written("y = Exp (x)"))[0].get(REGIONS) == ()


@pytest.mark.parametrize(
    ("text", "side"),
    [
        (f"m = {CONV} (x, w)", "local"),
        ("m = Conv (x, w)", "local"),  # 3x3 whether an attribute says so or not
        ("m = Conv <kernel_shape = [2, 2], strides = [1, 2]> (x, two)", "local"),
        ("m = Conv <kernel_shape = [2, 2], strides = [2, 2]> (x, two)", anchors.PATCHES),
        ("m = ConvTranspose <kernel_shape = [3, 3], strides = [2, 2]> (x, w)", "local"),
        ("m = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (x, two)", anchors.PATCHES),
        ("m = Conv <kernel_shape = [1, 1]> (x, point)", None),
        ("m = Conv (x, whole)", anchors.SUMMARY),
        ("c = Conv (x, point) m = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (c)", "local"),
        ("c = Conv (x, point) m = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (c)",
         anchors.PATCHES),
        ("c = Conv (x, point) m = AveragePool <kernel_shape = [8, 8]> (c)", anchors.SUMMARY),
        ("c = Conv (x, point) m = GlobalAveragePool (c)", None),
        ("c = Conv (x, point) m = Resize (c, , scales)", "local"),
        ("m = Resize (x, , scales)", anchors.OUTSIDE),
        ("m = MatMul (x, x)", "global"),
        ("m = MatMul (x, square)", None),
        ("m = Softmax (x)", None),
        ("s = Mul (x, x) m = ReduceMean <axes = [2, 3]> (s)", anchors.GATED),
        ("p = Softmax (x) s = Mul (p, x) m = GlobalAveragePool (s)", anchors.GATED),
    ],
)  # fmt: skip
def test_anchors(written, text, side):
    graph = import_graph(written(f"{text} y = Conv (m, point)"))
    node = next(node for node in graph.nodes if node.outputs[0].name == "m")
    node.outputs[0].shape = [1, 16, 1, 1] if side == anchors.SUMMARY else None
    for tensor in graph.tensors().values():
        if tensor.shape is None and node.op in anchors.SUMS:
            tensor.shape = [1, 16, 8, 8]
    found = anchors.mixing(Ancestry(graph), graph.nodes.index(node))
    assert getattr(found, "reason", found) == side


def test_near_misses_are_counted(detect):
    _, outcome = detect(FAMILIES["ViT"]())
    assert outcome.misses == {anchors.PATCHES: 1}


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("1, 16, 8, 8", "4x4"),
        ("1, 16, height, width", "height/2xwidth/2"),
        ("1, 16, height, 8", "height/2x4"),
        ("1, 16, ?, ?", "?/2x?/2"),
    ],
)
def test_sizes_of_free_maps(detect, written, shape, size):
    conv = "Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3], strides = [2, 2]>"
    body = f"c = {conv} (x, w) {TO_TOKENS} {QKV} {SOFTMAX} y = MatMul (o, wo)"
    held, _ = detect(written(body, "a, b, c", shape))
    assert bridges(held) == [("in", size)]
    assert {region.size for region in held.get(REGIONS)} == {size}


def test_maps_of_two_free_sizes_are_two_bridges(detect, written):
    """A half and a quarter of an unknown size are not the same size."""
    half = "Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3], strides = [2, 2]>"
    attention = """
        {0}r = Reshape ({0}c, flat) {0}t = Transpose <perm = [0, 2, 1]> ({0}r)
        {0}q = MatMul ({0}t, wq) {0}s = MatMul ({0}q, {0}r) {0}p = Softmax ({0}s)
        {0}o = MatMul ({0}p, {0}t) {0}u = MatMul ({0}o, wo)
    """
    body = f"""
        ac = {half} (x, w) {attention.format("a")} bc = {half} (ac, w) {attention.format("b")}
        y = Concat <axis = 1> (au, bu)
    """
    held, _ = detect(written(body, "a, b, c", "1, 16, ?, ?"))
    assert bridges(held) == [("in", "?/2x?/2"), ("in", "?/4x?/4")]


def test_a_residual_keeps_a_second_attention_inside(detect, written):
    """Only the first of two attentions on one stream reads what convolution mixed last."""
    held, _ = detect(mobilevit_v1())
    entry = held.get(BRIDGES)[0]
    assert entry.why.endswith("at av")  # and no "1 more"


def test_a_channel_shuffle_is_no_change_of_layout(detect, written):
    """The first layer on the map is the one after the tokens became one, shuffled later or not."""
    shuffle = """
        [first] j = Conv (m, point) l = Reshape (j, groups)
        n = Transpose <perm = [0, 2, 1, 3, 4]> (l) a = Reshape (n, map)
    """
    body = HYBRID.replace("[back]", f"{shuffle} [back]").replace("(m, w)", "(a, w)")
    way_out = detect(written(body))[0].get(BRIDGES)[1]
    assert (way_out.nodes[0], way_out.nodes[-1]) == ("proj", "first")


def test_a_gate_that_mixes_channels_as_positions_is_no_way_out(detect, written):
    """Channel attention by a convolution along the channels, inside a global region."""
    gate = """
        e = ReduceMean <axes = [1]> (o) f = Reshape (e, line)
        [channels] g = Conv <pads = [1, 1], kernel_shape = [3]> (f, near)
        i = Sigmoid (g) gated = Mul (o, i) [proj] u = MatMul (gated, wo)
    """
    held, outcome = detect(written(HYBRID.replace("[proj] u = MatMul (o, wo)", gate)))
    assert bridges(held) == [("in", "8x8"), ("out", "8x8")]
    assert "channels" not in held.get(BRIDGES)[1].nodes
    assert outcome.misses == {anchors.GATE: 1}


def test_a_pointwise_layer_after_attention_is_no_way_out(detect, written):
    held, _ = detect(written(HYBRID.replace(f"[back] y = {CONV} (m, w)", "y = Conv (m, point)")))
    assert bridges(held) == [("in", "8x8")]
