# SPDX-License-Identifier: Apache-2.0
"""Cost tables are made of small models: what they hold, what they take, what is fitted to it."""

import math
from collections import Counter

import numpy as np
import onnx
import pytest

from qhyvit_onnx.costs import clock, profile
from qhyvit_onnx.costs.fit import fit
from qhyvit_onnx.costs.sizes import rest_cost, row_of, runs, size_of
from qhyvit_onnx.costs.specimens import LONG, SHORT, specimens
from qhyvit_onnx.costs.table import (
    DEPTHWISE_3X3,
    KEYS,
    MOVING,
    Cost,
    Size,
    Target,
    float_key,
    int8_key,
    load_table,
)
from qhyvit_onnx.kinds import CONVOLUTIONS, LAYERS, Kind
from qhyvit_onnx.runtime import optimized
from qhyvit_onnx.state import State
from qhyvit_onnx.units import find_units
from qhyvit_onnx.work import shapes_at
from tests.conftest import build_model

SPECIMENS = specimens()
MOVEMENT_ROW = float_key(MOVING)
SMALL = [s for s in SPECIMENS if np.prod(s.shape) <= 16_384]
KERNELS = {
    **dict.fromkeys(CONVOLUTIONS, "QLinearConv"), Kind.GEMM: "QGemm", Kind.MATMUL: "QGemm",
    Kind.PRODUCT: "QLinearMatMul", Kind.SILU: "QLinearSigmoid", Kind.SIGMOID: "QLinearSigmoid",
    Kind.LEAKY_RELU: "QLinearLeakyRelu", Kind.SOFTMAX: "QLinearSoftmax", Kind.ADD: "QLinearAdd",
    Kind.MUL: "QLinearMul", Kind.CONCAT: "QLinearConcat",
}  # fmt: skip


def test_names_are_unique_and_every_row_is_measured():
    assert len({specimen.name for specimen in SPECIMENS}) == len(SPECIMENS)
    assert set().union(*(specimen.terms() for specimen in SPECIMENS)) == set(KEYS)


def test_every_row_is_measured_at_several_sizes():
    seen = Counter(key for specimen in SPECIMENS for key in specimen.terms())
    assert min(seen.values()) >= 3


@pytest.mark.parametrize("specimen", SMALL, ids=lambda specimen: specimen.name)
def test_a_specimen_runs_on_the_kernels_it_counts(specimen):
    model = specimen.model(LONG)
    onnx.checker.check_model(model)
    ops = Counter(node.op_type for node in optimized(model).graph.node)
    counted = {key.partition(".")[2] for key in specimen.terms() if key.startswith("int8.")}
    for kind, kernel in KERNELS.items():
        if str(kind) in counted and "to float" not in specimen.name:
            assert ops[kernel] >= LONG, ops
    if not counted and "quantize" not in specimen.name:
        assert not any("QLinear" in op or "Quantize" in op for op in ops), ops


def test_terms_are_what_more_repetitions_add():
    specimen = next(s for s in SPECIMENS if s.name == "int8 conv 3x3 1x16x64x64")
    times, pixels = LONG - SHORT, 64 * 64
    assert specimen.terms() == {
        int8_key(Kind.CONV): (times, times * 16 * pixels * 16 * 9, times * 2 * 16 * pixels)
    }


def test_what_changes_form_pays_at_both_borders():
    specimen = next(s for s in SPECIMENS if s.name == "conv int8, norm 16x64x64")
    counted = {key: count for key, (count, _, _) in specimen.terms().items()}
    times = LONG - SHORT
    assert counted == {
        "border.quantize": times, "border.dequantize": times, "border.nhwc": 2 * times,
        int8_key(Kind.POINTWISE): times, float_key("norm"): times,
    }  # fmt: skip


def known_costs(seed):
    rng = np.random.default_rng(seed)
    return {
        key: Cost(*(float(x) for x in rng.uniform(0.5, 2.0, 3) * (3e3, 0.1, 1.0))) for key in KEYS
    }


def priced(rows, terms):
    return sum(
        rows[key].fixed * count + rows[key].mac * macs + rows[key].element * elements
        for key, (count, macs, elements) in terms.items()
    )


def test_the_fit_finds_what_specimens_cost():
    rows = known_costs(0)
    measured = [priced(rows, specimen.terms()) for specimen in SPECIMENS]
    found = fit(SPECIMENS, measured)
    again = [priced(found, specimen.terms()) for specimen in SPECIMENS]
    np.testing.assert_allclose(again, measured, rtol=1e-4)
    assert max(row.error for row in found.values()) < 1e-4


def test_the_fit_tells_its_error_and_is_never_below_zero():
    rows, rng = known_costs(1), np.random.default_rng(1)
    noisy = [priced(rows, s.terms()) * rng.uniform(0.8, 1.2) for s in SPECIMENS]
    found = fit(SPECIMENS, noisy)
    assert 0.01 < np.median([row.error for row in found.values()]) < 0.2
    assert min(min(row.fixed, row.mac, row.element) for row in found.values()) >= 0.0


def test_what_was_lost_in_noise_does_not_count():
    rows = known_costs(2)
    measured = [priced(rows, specimen.terms()) for specimen in SPECIMENS]
    measured[3] = math.nan
    found = fit(SPECIMENS, measured)
    assert priced(found, SPECIMENS[7].terms()) == pytest.approx(measured[7], rel=1e-3)


def test_what_is_known_to_be_free_costs_nothing():
    rows = known_costs(3)
    measured = [priced(rows, specimen.terms()) for specimen in SPECIMENS]
    free = fit(SPECIMENS, measured, ["border.blocked"])["border.blocked"]
    assert (free.fixed, free.mac, free.element) == (0.0, 0.0, 0.0)


def test_one_row_is_fitted_beside_others_that_stay():
    rows = known_costs(4)
    chosen = [specimen for specimen in SPECIMENS if MOVEMENT_ROW in specimen.terms()]
    others = {key: row for key, row in rows.items() if key != MOVEMENT_ROW}
    found = fit(chosen, [priced(rows, specimen.terms()) for specimen in chosen], known=others)
    want, got = rows[MOVEMENT_ROW], found[MOVEMENT_ROW]
    assert (got.fixed, got.mac, got.element) == pytest.approx((want.fixed, want.mac, want.element))
    assert {key: row for key, row in found.items() if key != MOVEMENT_ROW} == others


class Fake:
    """A session and a clock: running takes as long as the model has nodes."""

    now = 0.0

    def __init__(self, model, _options):
        self.nodes = len(model.graph.node)

    def run(self, _feeds):
        Fake.now += 1e-6 * self.nodes


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(clock, "Session", Fake)
    monkeypatch.setattr(clock.time, "process_time", lambda: Fake.now)
    monkeypatch.setattr(clock, "SECONDS", 0.0)


def test_the_clock_takes_the_difference_of_the_two_lengths(fake):
    chosen, ticks = SPECIMENS[:3], []
    found = clock.measure(chosen, lambda done, total: ticks.append((done, total)))
    assert ticks == [(1, 3), (2, 3), (3, 3)]
    more = [len(s.model(LONG).graph.node) - len(s.model(SHORT).graph.node) for s in chosen]
    np.testing.assert_allclose(found, [1e3 * nodes for nodes in more], rtol=1e-6)


def test_a_difference_of_nothing_is_not_a_number(fake, monkeypatch):
    monkeypatch.setattr(Fake, "run", lambda _self, _feeds: None)
    assert math.isnan(clock.measure(SPECIMENS[:1])[0])


def test_profile_makes_a_whole_table(monkeypatch, tmp_path):
    from qhyvit_onnx.costs.table import dump_table

    rows = known_costs(4)
    monkeypatch.setattr(
        profile, "measure", lambda chosen, _tick: [priced(rows, s.terms()) for s in chosen]
    )
    table = profile.profile("my-board", "a board", lambda _done, _total: None)
    assert (table.name, table.summary, table.unit) == ("my-board", "a board", "ns")
    path = tmp_path / "my-board.toml"
    path.write_text(dump_table(table))
    again = load_table(path)
    assert tuple(again.rows) == KEYS
    key = int8_key(Kind.CONV)
    assert again.rows[key].of(Size(1e6, 1e4)) == pytest.approx(
        table.rows[key].of(Size(1e6, 1e4)), rel=1e-3
    )


def unit_of(body, **weights):
    model = build_model(f"g (float[1, 8, 6, 6] x) => (float[a, b, c, d] y) {{ {body} }}", **weights)
    graph = State(model, None, []).graph
    (unit,) = find_units(graph)
    return unit, shapes_at(graph, {})


@pytest.mark.parametrize(
    ("body", "weights", "row", "size"),
    [
        ("y = Conv <kernel_shape = [3, 3]> (x, w)", {"w": (4, 8, 3, 3)}, Kind.CONV,
         Size(4 * 16 * 72, 8 * 36 + 4 * 16, 1)),
        ("y = Conv <group = 8, kernel_shape = [3, 3]> (x, w)", {"w": (8, 1, 3, 3)}, DEPTHWISE_3X3,
         Size(8 * 16 * 9, 8 * 36 + 8 * 16, 8)),
        ("y = Conv <group = 8, kernel_shape = [3, 3], strides = [2, 2]> (x, w)",
         {"w": (8, 1, 3, 3)}, Kind.DEPTHWISE, Size(8 * 4 * 9, 8 * 36 + 8 * 4, 8)),
        ("y = Conv <group = 8, kernel_shape = [5, 5]> (x, w)", {"w": (8, 1, 5, 5)}, Kind.DEPTHWISE,
         Size(8 * 4 * 25, 8 * 36 + 8 * 4, 8)),
        ("y = MatMul (x, w)", {"w": (6, 5)}, Kind.MATMUL, Size(8 * 6 * 5 * 6, 288 + 240 + 30)),
        ("y = MatMul (x, x)", {}, Kind.PRODUCT, Size(288 * 6, 3 * 288)),
        ("y = AveragePool <kernel_shape = [2, 2]> (x)", {}, Kind.POOL, Size(8 * 25 * 4)),
        ("y = GlobalAveragePool (x)", {}, Kind.POOL, Size(0, 288 + 8)),
        ("y = Sigmoid (x)", {}, Kind.SIGMOID, Size(0, 2 * 288)),
    ],
)  # fmt: skip
def test_sizes_are_counted_from_shapes(body, weights, row, size):
    unit, shapes = unit_of(body, **weights)
    assert (row_of(unit), size_of(unit, shapes)) == (str(row), size)


def test_sizes_of_free_dims_are_expressions():
    model = build_model(
        "g (float[N, 8, H, W] x) => (float[a, b, c, d] y) { y = Conv (x, w) }", w=(4, 8, 1, 1)
    )
    graph = State(model, None, []).graph
    (unit,) = find_units(graph)
    size = size_of(unit, shapes_at(graph, {}))
    names = {str(symbol): symbol for symbol in size.macs.free_symbols}
    assert set(names) == {"H", "W"}
    assert size.macs.subs({names["H"]: 3, names["W"]: 5}) == 4 * 15 * 8


def test_the_layers_are_a_part_of_the_table():
    assert {float_key(kind) for kind in LAYERS} <= set(KEYS)


def test_what_is_in_no_unit_is_priced_too():
    body = "a = LayerNormalization (x, g) b = Exp (a) c = Reshape (b, s) y = Conv (c, w)"
    model = build_model(
        f"g (float[1, 8, 6, 6] x) => (float[a, b, c, d] y) {{ {body} }}",
        g=(6,), s=np.array([1, 8, 6, 6], np.int64), w=(4, 8, 1, 1),
    )  # fmt: skip
    graph = State(model, None, []).graph
    rows = {float_key("norm"): Cost(element=1.0), float_key("elementwise"): Cost(element=100.0)}
    target = Target("t", "", "ns", "", {key: rows.get(key, Cost()) for key in KEYS})
    cost = rest_cost(graph, list(find_units(graph)), target, shapes_at(graph, {}))
    assert cost == 2 * 288 + 100 * 2 * 288


def moving(body, **constants):
    model = build_model(
        f"g (float[1, 2, 6, 4] x) => (float[a, b, c, d] y) {{ {body} }}", **constants
    )
    graph = State(model, None, []).graph
    rows = {MOVEMENT_ROW: Cost(fixed=1e6, mac=1e3, element=1.0)}
    target = Target("t", "", "ns", "", {key: rows.get(key, Cost()) for key in KEYS})
    return rest_cost(graph, list(find_units(graph)), target, shapes_at(graph, {}))


@pytest.mark.parametrize(
    ("body", "cost"),
    [
        ("y = Transpose <perm = [0, 2, 1, 3]> (x)", 1e6 + 12e3 + 96),
        ("y = Transpose (x)", 1e6 + 48e3 + 96),
        ("y = Reshape (x, s)", 1e6),
        ("y = Slice (x, zero, one, one)", 1e6 + 48 + 24),
        ("t = Transpose <perm = [0, 1, 3, 2]> (x) y = MatMul (x, t)", 0),
        ("y = Transpose <perm = [0, 1, 3, 2]> (x)", 1e6 + 48e3 + 96),
        ("t = Transpose <perm = [0, 2, 1, 3]> (x) y = MatMul (t, w)", 1e6 + 12e3 + 96),
    ],
)
def test_data_movement_is_priced_but_for_what_products_take_in(body, cost):
    numbers = {
        "s": np.array([1, 2, 4, 6], np.int64), "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64), "w": np.ones((4, 4), np.float32),
    }  # fmt: skip
    assert moving(body, **{n: a for n, a in numbers.items() if f" {n}" in body}) == cost


@pytest.mark.parametrize(
    ("order", "shape", "count"),
    [((0, 1, 2), (2, 3, 4), 1), ((0, 2, 1), (2, 3, 4), 24), ((1, 0, 2), (2, 3, 4), 6)],
)
def test_axes_at_the_end_that_stay_are_moved_as_one(order, shape, count):
    assert runs(order, shape) == count
