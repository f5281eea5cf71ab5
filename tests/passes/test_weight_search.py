# SPDX-License-Identifier: Apache-2.0
"""The weight of one layer by evidence: fewer errors at the output, on scales that kernels take."""

import numpy as np
import pytest

from qhyvit_onnx.grid import Grid
from qhyvit_onnx.kernels.evidence import LayerEvidence
from qhyvit_onnx.kernels.weight_search import cost_on_rows
from qhyvit_onnx.passes._matrices import from_rows, rows_of, weight_of
from qhyvit_onnx.passes._searching.weights import WeightSearch
from qhyvit_onnx.units import LAYERS, find_units

LAYER = {
    "conv": ("float[1, 8, 6, 6] x", "y = Conv (x, w, b)", {"w": (6, 8, 3, 3), "b": (6,)}),
    "grouped": ("float[1, 8, 6, 6] x", "y = Conv <group = 2> (x, w)", {"w": (6, 4, 3, 3)}),
    "depthwise": ("float[1, 8, 6, 6] x", "y = Conv <group = 8> (x, w)", {"w": (8, 1, 3, 3)}),
    "gemm": ("float[3, 24] x", "y = Gemm (x, w, b)", {"w": (24, 5), "b": (5,)}),
    "gemm_b": ("float[3, 24] x", "y = Gemm <transB = 1> (x, w)", {"w": (5, 24)}),
    "matmul": ("float[1, 3, 24] x", "y = MatMul (x, w)", {"w": (24, 5)}),
    "stack": ("float[2, 3, 24] x", "y = MatMul (x, w)", {"w": (2, 24, 5)}),
}
GROUPS = {"grouped": 2, "depthwise": 8, "stack": 2}


@pytest.fixture
def layer(build, state):
    """Return a function: case -> its unit."""

    def make(case, **arrays):
        port, body, weights = LAYER[case]
        text = f"g ({port}) => (float[{', '.join('abcd'[: port.count(',') + 1])}] y) {{ {body} }}"
        (unit,) = find_units(state(build(text, **{**weights, **arrays})).graph)
        assert unit.kind in LAYERS
        return unit

    return make


def evidence_of(unit, case, seed=0, places=400):
    """Return evidence of correlated inputs: the gram of all places, the rows of a fifth."""
    rng = np.random.default_rng(seed)
    groups, rows = GROUPS.get(case, 1), rows_of(unit)
    width = rows.shape[1]
    mixed = rng.standard_normal((groups, width, width)) * np.exp(rng.standard_normal(width))
    x = np.matmul(rng.standard_normal((groups, places, width)), mixed).transpose(1, 0, 2)
    gains = rng.exponential(size=(places, len(rows)))
    g2 = gains.reshape(places, groups, -1).mean(axis=2)
    gram = np.einsum("pg,pgk,pgl->gkl", g2, x, x) / places
    drawn = slice(None, None, 5)
    return LayerEvidence(*(a.astype(np.float32) for a in (gram, x[drawn], gains[drawn])))


def search(unit, bits=8, pair_limit=0, scale=0.02):
    return WeightSearch(unit, {"x": Grid(scale, 128)}, bits=bits, pair_limit=pair_limit)


def lost(unit, choice, evidence):
    """Return what the choice costs on the drawn rows, by output channel."""
    weight = weight_of(unit)
    codes = choice.grid.codes(weight) if choice.codes is None else choice.codes
    error = codes * choice.grid.spread(weight.ndim) - weight
    shape = rows_of(unit).shape
    places = from_rows(unit, np.arange(weight.size).reshape(shape))  # of each element in the rows
    rows = np.empty(weight.size, np.float32)
    rows[places.ravel()] = error.ravel()
    return cost_on_rows(rows.reshape(shape), evidence)


@pytest.mark.parametrize("case", LAYER)
@pytest.mark.parametrize("bits", [4, 8])
def test_the_output_loses_less(layer, case, bits):
    unit = layer(case)
    evidence, found = evidence_of(unit, case), search(unit, bits)
    plain, chosen = found.nearest(), found.by_evidence(evidence)
    before, after = (lost(unit, choice, evidence) for choice in (plain, chosen))
    if case != "stack":  # which has one scale, and is kept or not as a whole
        assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.8 * before.sum()


@pytest.mark.parametrize("case", LAYER)
def test_codes_have_the_shape_and_the_limits_of_the_weight(layer, case):
    unit = layer(case)
    chosen = search(unit, 4).by_evidence(evidence_of(unit, case))
    weight = weight_of(unit)
    assert (chosen.codes.shape, chosen.codes.dtype) == (weight.shape, np.int8)
    assert np.abs(chosen.codes).max() == chosen.grid.limit == 7
    steps = weight / chosen.grid.spread(weight.ndim)
    # next to the weight, or clipped
    near = np.abs(chosen.codes - np.clip(steps, -7, 7))
    assert near.max() < 1.0 + 1e-5
    assert chosen.grid.per_tensor is (case == "stack")


def test_evidence_that_misleads_is_not_followed(layer):
    # the gram says that only the first inputs matter; the places show that only the others do
    unit = layer("gemm")
    honest = evidence_of(unit, "gemm")
    gram, rows = np.zeros_like(honest.gram), honest.rows.copy()
    gram[0, :4, :4] = np.ones((4, 4)) + np.eye(4)
    rows[:, :, :4] = 0.0
    evidence = LayerEvidence(gram, rows, honest.gains)
    found = search(unit, 4)
    before, after = (
        lost(unit, choice, evidence) for choice in (found.nearest(), found.by_evidence(evidence))
    )
    assert (after <= before * (1 + 1e-5)).all()
    assert (after == before).any()


def test_two_searches_find_the_same(layer):
    unit = layer("conv")
    first, second = (search(unit, 6).by_evidence(evidence_of(unit, "conv")) for _ in range(2))
    np.testing.assert_array_equal(first.codes, second.codes)
    np.testing.assert_array_equal(first.grid.scale, second.grid.scale)


def test_the_weight_stays_as_it_is(layer):
    unit = layer("conv")
    before = weight_of(unit).copy()
    search(unit).by_evidence(evidence_of(unit, "conv"))
    np.testing.assert_array_equal(weight_of(unit), before)


@pytest.mark.parametrize("case", ["conv", "gemm", "matmul"])
def test_no_pair_of_codes_saturates(layer, case):
    shape = LAYER[case][2]["w"]
    heavy = np.random.default_rng(1).uniform(0.3, 0.5, shape).astype(np.float32)
    unit = layer(case, w=heavy)
    chosen = search(unit, pair_limit=128).by_evidence(evidence_of(unit, case))
    codes = chosen.codes.astype(int)
    # in the order the kernel sums: channels of one position, or rows of a matrix
    summed = np.moveaxis(codes, 1, -1).reshape(len(codes), -1) if case == "conv" else codes.T
    pairs = summed[:, 0::2] + summed[:, 1::2]
    assert 100 < np.abs(pairs).max() <= 128


def test_a_channel_of_zeros_still_represents_its_bias(layer):
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((24, 5)).astype(np.float32)
    weight[:, 3] = 0.0
    bias = np.zeros(5, np.float32)
    bias[3] = 1234.5
    unit = layer("gemm", w=weight, b=bias)
    chosen = search(unit).by_evidence(evidence_of(unit, "gemm"))
    step = np.float32(0.02) * chosen.grid.scale[3]
    assert not chosen.codes[:, 3].any()
    assert abs(np.rint(bias[3] / step)) < 2**31
    assert np.rint(bias[3] / step) * step == pytest.approx(bias[3], rel=1e-3)


@pytest.mark.parametrize("case", LAYER)
def test_rows_are_a_way_to_write_the_weight(layer, case):
    unit = layer(case)
    np.testing.assert_array_equal(from_rows(unit, rows_of(unit)), weight_of(unit))
    # one row makes one output channel: every element of it lies at one place of the channel axis
    rows = rows_of(unit)
    marked = np.zeros_like(rows)
    marked[2] = 1.0
    back = np.moveaxis(from_rows(unit, marked), unit.weight_axis, 0)
    assert sorted(np.unique(np.nonzero(back)[0])) == [2 if case != "stack" else 2 % 5]
