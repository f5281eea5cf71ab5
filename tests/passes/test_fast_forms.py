# SPDX-License-Identifier: Apache-2.0
"""Fast forms compute what the plain ones do, and are taken only where that holds."""

import numpy as np
import pytest

from qhyvit_onnx.facts import Grids
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.passes._fast_forms import STEPS, TANH_ERROR, FastForms
from qhyvit_onnx.passes._forms import Forms
from qhyvit_onnx.passes.normalise import Normalise
from qhyvit_onnx.units import find_units
from tests.conftest import build_model

GELU = """
    d = Div (x, root) e = Erf (d) p = Add (e, one) m = Mul (x, p) a = Mul (m, half)
    [next] y = Conv (a, w)
"""
NUMBERS = {
    "root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5), "w": (4, 8, 1, 1),
}  # fmt: skip
COARSE, FINE = 1.01 * STEPS * TANH_ERROR, 0.99 * STEPS * TANH_ERROR


def changed(state, model, carried=(), scale=COARSE, chosen=("next",)):
    """Return the model in fast forms, how many were taken, and what is carried then."""
    found = state(model)
    Normalise().run(found)
    units = [unit for unit in find_units(found.graph) if unit.name in chosen]
    grids = Grids(dict.fromkeys(carried, Grid(scale, 8)), {})
    forms = FastForms(found.graph, Forms(units, grids, {n: n for n in carried})).write()
    return found, forms.count, forms.carried


def ops(state):
    return [node.op for node in state.graph.nodes]


def gelu(body=GELU, header="", **more):
    text = f"{header} g (float[1, 8, 6, 6] x) => (float[a, b, c, d] y) {{ {body} }}"
    return build_model(text, **(NUMBERS | more))


X = {"x": np.random.default_rng(0).normal(0, 2, (1, 8, 6, 6)).astype(np.float32)}


def test_a_gelu_rounded_to_large_steps_is_written_with_tanh(state, run_model):
    model = gelu()
    found, count, carried = changed(state, model, ["a"])
    assert (count, ops(found)) == (1, ["FastGelu", "Conv"])
    assert carried == {"a": "a"}
    want, got = (run_model(m, X)[0] for m in (model, found.model()))
    assert 0 < np.abs(want - got).max() < 10 * TANH_ERROR


def test_the_largest_error_of_tanh_is_as_stated(run_model, state):
    x = {"x": np.linspace(-6, 6, 288, dtype=np.float32).reshape(1, 8, 6, 6)}
    eye = {"w": np.eye(8, dtype=np.float32)[:, :, None, None]}
    model = gelu(**eye)
    found, _, _ = changed(state, model, ["a"])
    want, got = (run_model(m, x)[0] for m in (model, found.model()))
    assert 0.9 * TANH_ERROR < np.abs(want - got).max() < TANH_ERROR


def test_where_opset_20_has_the_form_it_is_a_standard_op(state):
    header = '<ir_version: 9, opset_import: ["": 20]>\n'
    found, count, _ = changed(state, gelu(header=header), ["a"])
    assert (count, ops(found)) == (1, ["Gelu", "Conv"])
    assert found.graph.nodes[0].attrs["approximate"] == "tanh"


@pytest.mark.parametrize(
    ("body", "carried", "scale", "chosen"),
    [
        (GELU, ["a"], FINE, ("next",)),  # steps so small that the error shows
        (GELU, [], COARSE, ("next",)),  # not rounded at all
        (GELU, ["a"], COARSE, ()),  # read in float
        (GELU.replace("y =", "z =") + "u = Exp (a) y = Concat <axis = 1> (z, u)", ["a"], COARSE,
         ("next",)),  # read in float too
    ],
)  # fmt: skip
def test_a_gelu_that_could_be_told_apart_stays(state, body, carried, scale, chosen):
    found, count, _ = changed(state, gelu(body), carried, scale, chosen)
    assert count == 0
    assert "FastGelu" not in ops(found)


UNFOLD = """
    a = Reshape (x, cut) b = Transpose <perm = [0, 2, 1, 3]> (a)
    c = Reshape (b, parts) t = Transpose <perm = [0, 3, 2, 1]> (c) y = Neg (t)
"""
FOLD = """
    b = Transpose <perm = [0, 3, 2, 1]> (x) c = Reshape (b, parts)
    d = Transpose <perm = [0, 2, 1, 3]> (c) y = Reshape (d, whole)
"""


def moved(body, shape, **targets):
    dims = ", ".join(map(str, shape))
    text = f"g (float[{dims}] x) => (float[a, b, c, d] y) {{ {body} }}"
    return build_model(text, **{k: np.array(v, np.int64) for k, v in targets.items()})


def unfold(batch=1, channels=16, height=8, width=12, side=2):
    across = width // side
    return moved(
        UNFOLD, (batch, channels, height, width), cut=[-1, side, across, side],
        parts=[-1, channels, height // side * across, side * side],
    )  # fmt: skip


def same(run_model, model, found, shape):
    x = {"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}
    want, got = (run_model(m, x)[0] for m in (model, found.model()))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("batch", "side"), [(1, 2), (3, 2), ("N", 2), (1, 4)])
def test_patches_are_cut_by_space_to_depth(state, run_model, batch, side):
    model = unfold(batch, side=side)
    found, count, _ = changed(state, model)
    assert count == 1
    assert ops(found) == ["SpaceToDepth", "Reshape", "Transpose", "Neg"]
    same(run_model, model, found, (batch if batch != "N" else 5, 16, 8, 12))


def test_patches_that_are_carried_are_carried_all_the_way(state):
    found, _, carried = changed(state, unfold(), ["t", "c", "a"])
    inside = {out.name for node in found.graph.nodes for out in node.outputs} - {"y"}
    assert set(carried) == inside
    assert set(carried.values()) == {"t"}


@pytest.mark.parametrize(
    "model",
    [
        moved(
            UNFOLD, (1, 16, 8, 12), cut=[-1, 4, 6, 2], parts=[-1, 16, 12, 8]),  # not square
        moved(UNFOLD, (1, 16, 8, 12), cut=[-1, 2, 6, 2], parts=[-1, 8, 48, 4]),  # other channels
        moved(UNFOLD.replace("2, 1, 3", "1, 2, 3"), (1, 16, 8, 12), cut=[-1, 2, 6, 2],
              parts=[-1, 16, 24, 4]),  # other order
    ],
    ids=["not square", "other channels", "other order"],
)  # fmt: skip
def test_what_only_looks_like_patches_stays(state, run_model, model):
    found, _, _ = changed(state, model)
    assert "SpaceToDepth" not in ops(found)
    same(run_model, model, found, (1, 16, 8, 12))


@pytest.mark.parametrize("batch", [1, 3, "N"])
def test_patches_are_put_together_in_two_steps(state, run_model, batch):
    model = moved(FOLD, (batch, 4, 24, 16), parts=[-1, 6, 2, 2], whole=[-1, 16, 8, 12])
    found, count, _ = changed(state, model)
    assert count == 1
    perms = [list(n.attrs["perm"]) for n in found.graph.nodes if n.op == "Transpose"]
    assert perms == [[0, 2, 1, 3], [0, 2, 1], [0, 2, 1, 3]]
    same(run_model, model, found, (batch if batch != "N" else 5, 4, 24, 16))


PART = """
    a = Reshape (x, six) b = Transpose <perm = [0, 1, 3, 5, 2, 4]> (a)
    c = Reshape (b, parts) y = Neg (c)
"""
JOIN = """
    a = Reshape (x, six) b = Transpose <perm = [0, 1, 4, 2, 5, 3]> (a)
    c = Reshape (b, whole) y = Neg (c)
"""


@pytest.mark.parametrize("batch", [1, 3, "N"])
def test_patches_that_stay_maps_are_cut_by_space_to_depth(state, run_model, batch):
    model = moved(PART, (batch, 16, 8, 12), six=[-1, 16, 4, 2, 6, 2], parts=[-1, 16, 4, 24])
    found, count, _ = changed(state, model)
    assert (count, ops(found)) == (1, ["SpaceToDepth", "Reshape", "Transpose", "Neg"])
    same(run_model, model, found, (batch if batch != "N" else 5, 16, 8, 12))


@pytest.mark.parametrize("batch", [1, 3, "N"])
def test_patches_that_stay_maps_are_put_together_by_depth_to_space(state, run_model, batch):
    model = moved(JOIN, (batch, 16, 4, 24), six=[-1, 16, 2, 2, 4, 6], whole=[-1, 16, 8, 12])
    found, count, _ = changed(state, model)
    assert (count, ops(found)) == (1, ["Transpose", "Reshape", "DepthToSpace", "Neg"])
    same(run_model, model, found, (batch if batch != "N" else 5, 16, 4, 24))


@pytest.mark.parametrize(
    ("six", "parts"),
    [([-1, 16, 8, 1, 3, 4], [-1, 16, 4, 24]), ([-1, 16, 2, 4, 12, 1], [-1, 16, 4, 24])],
)
def test_maps_cut_otherwise_stay(state, run_model, six, parts):
    model = moved(PART, (1, 16, 8, 12), six=six, parts=parts)
    found, count, _ = changed(state, model)
    assert count == 0
    same(run_model, model, found, (1, 16, 8, 12))


@pytest.mark.parametrize("patches", [1, 32])
def test_wide_swaps_stay(state, patches):
    model = moved("y = Transpose <perm = [0, 3, 2, 1]> (x)", (1, patches, 24, 64))
    assert changed(state, model)[1] == 0


WIDEN = "y = Conv <group = 4, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)"


@pytest.mark.parametrize("copies", [2, 3])
def test_a_convolution_that_widens_becomes_depthwise(state, run_model, copies):
    text = f"g (float[N, 4, 6, 6] x) => (float[a, b, c, d] y) {{ {WIDEN} }}"
    model = build_model(text, w=(4 * copies, 1, 3, 3))
    found = state(model)
    Normalise().run(found)
    assert ops(found) == ["Gather", "Conv"]
    assert found.graph.nodes[1].attrs["group"] == 4 * copies
    assert [str(unit.kind) for unit in find_units(found.graph)] == ["depthwise conv"]
    same(run_model, model, found, (2, 4, 6, 6))


@pytest.mark.parametrize("shape", [(4, 1, 3, 3), (8, 2, 3, 3)])
def test_other_grouped_convolutions_stay(state, shape):
    group = 4 if shape[1] == 1 else 2
    text = WIDEN.replace("group = 4", f"group = {group}")
    model = build_model(f"g (float[1, 4, 6, 6] x) => (float[a, b, c, d] y) {{ {text} }}", w=shape)
    found = state(model)
    Normalise().run(found)
    assert ops(found) == ["Conv"]


def averaged(axes, keepdims=1, shape="N, 4, H, W", kind="float"):
    """Return a net that is one ReduceMean."""
    text = f"m = ReduceMean <axes = [{axes}], keepdims = {keepdims}> (x)"
    out = ", ".join("abcd"[: 4 if keepdims else 2])
    return build_model(f"g ({kind}[{shape}] x) => ({kind}[{out}] m) {{ {text} }}")


@pytest.mark.parametrize("axes", ["2, 3", "-1, -2"])
@pytest.mark.parametrize(
    ("keepdims", "made"), [(1, ["GlobalAveragePool"]), (0, ["GlobalAveragePool", "Flatten"])]
)
def test_a_mean_over_the_map_is_pooled(state, run_model, axes, keepdims, made):
    model = averaged(axes, keepdims)
    found = state(model)
    Normalise().run(found)
    assert ops(found) == made
    x = {"x": np.random.default_rng(1).normal(size=(2, 4, 6, 5)).astype(np.float32)}
    want, got = (run_model(each, x)[0] for each in (model, found.model()))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(averaged("1, 2"), id="channels"),
        pytest.param(averaged("3"), id="one axis"),
        pytest.param(averaged("1, 2, 3"), id="all at once"),
        pytest.param(averaged("2", shape="N, 4, H"), id="tokens"),
        pytest.param(averaged("2, 3", shape="N, 4, H, W, D"), id="volumes"),
        pytest.param(averaged("2, 3", kind="int32"), id="whole numbers"),
    ],
)
def test_other_means_stay(state, model):
    found = state(model)
    Normalise().run(found)
    assert ops(found) == ["ReduceMean"]


def test_the_means_of_a_norm_stay(state):
    """Over the map of an unknown size it is no LayerNormalization yet, but a norm all the same."""
    text = """
        g (float[1, 4, H, W] x) => (float[a, b, c, d] y) {
            m = ReduceMean <axes = [2, 3]> (x) d = Sub (x, m) q = Mul (d, d)
            v = ReduceMean <axes = [2, 3]> (q) e = Add (v, eps) s = Sqrt (e) y = Div (d, s)
        }
    """
    found = state(build_model(text, eps=np.float32(1e-5)))
    Normalise().run(found)
    assert ops(found).count("ReduceMean") == 2


def test_a_transpose_without_a_perm_is_left_alone(state, run_model):
    model = moved("y = Transpose (x)", (1, 4, 24, 16))
    found, count, _ = changed(state, model)
    assert (count, ops(found)) == (0, ["Transpose"])
    same(run_model, model, found, (1, 4, 24, 16))
