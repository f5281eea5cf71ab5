# SPDX-License-Identifier: Apache-2.0
"""Sections, run one after the other, give what the whole model would, were a tensor another."""

import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from qhyvit_onnx.grid import Grid
from qhyvit_onnx.passes import _sensitivity
from qhyvit_onnx.passes._chain import Chain
from qhyvit_onnx.passes._sections import sections_of
from qhyvit_onnx.passes._sensitivity import measure
from qhyvit_onnx.passes._twins import DELTA, Probe
from qhyvit_onnx.runtime import Session

LONG = """g (float[2, 6] x) => (float[2, 6] y, float[2, 6] early, float late) {
    t0 = MatMul (x, w) early = Relu (t0) t1 = MatMul (early, w) t2 = Tanh (t1) t3 = Add (t2, t0)
    t4 = MatMul (t3, w) t5 = Tanh (t4) t6 = Add (t5, x) t7 = MatMul (t6, w) t8 = Add (t7, t2)
    t9 = Tanh (t8) y = MatMul (t9, w) late = ReduceSum <keepdims = 0> (t9)
}"""
INSIDE = ["t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9"]
GRIDS = SimpleNamespace(
    activations=defaultdict(lambda: Grid(0.05, 128)), weight_of=lambda unit: unit.rounded
)
"""A step for any activation, and a weight for any unit."""


def branch(body):
    """Return a model in which ``body`` stands in both arms of an If, between computed tensors."""
    inner = f"g () => (float[2, 6] z) {{ {body} }}"
    return f"""g (float[2, 6] x, bool c) => (float[2, 6] y) {{
        t0 = MatMul (x, w) t1 = Tanh (t0) t2 = MatMul (t1, w) t3 = Relu (t2) t4 = MatMul (t3, w)
        t5 = If (c) <then_branch = {inner}, else_branch = {inner}> y = MatMul (t5, w)
    }}"""


def chained(count, op="Tanh"):
    """Return the text of a model of ``count`` tensors in a row."""
    body = " ".join(f"t{i + 1} = {op} (t{i})" for i in range(count))
    return f"g (float[8, 8] t0) => (float[8, 8] y) {{ {body} y = Relu (t{count}) }}"


def probes_of(model, outputs, cost=lambda name: 1.0):
    """Return a unit for each of ``outputs``: the nodes named there, else the one that makes it."""
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"n{index}"
    made = {name: node for node in model.graph.node for name in node.output}
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    found = []
    for name in outputs:
        node = made[name]
        weight = next((item for item in node.input if item in weights), None)
        unit = SimpleNamespace(
            name=f"unit {name}",
            output=SimpleNamespace(name=name),
            inputs=[
                SimpleNamespace(name=item) for item in node.input if item not in {*weights, "c"}
            ],
            interior=[],
            weight=weight and SimpleNamespace(name=weight),
            rounded=weights[weight] * np.float32(1.01) if weight else None,
            nodes=[SimpleNamespace(name=node.name)],
        )
        found.append(Probe(unit, writes_codes=False, cost=cost(name)))
    return found


def hold(model, feeds, inside):
    """Assert that every section gives what the model with a tensor moved gives; return them."""
    rng = np.random.default_rng(0)
    ends = [item.name for item in model.graph.output]
    sections = sections_of(model, probes_of(model, inside), ends)
    assert [name for section in sections for name in section.perturbed] == inside
    with ThreadPoolExecutor(2) as pool:
        chain = Chain(model, sections, GRIDS, pool)
        clean, found = chain.clean(feeds)
        given = [future.result() for future in found]
    for at, section in enumerate(sections):
        for name in section.perturbed:
            delta = rng.standard_normal(clean_shape(model, feeds, name)).astype(np.float32)
            for stop in range(at + 1, len(sections) + 1):
                seen = ends if stop == len(sections) else sections[stop - 1].alive
                dirty = chain.dirty(clean, {f"{name}{DELTA}": delta}, at, stop)
                want = moved(model, name, delta, feeds, seen) | feeds
                for tensor in seen:
                    np.testing.assert_allclose(dirty[tensor], want[tensor], rtol=1e-5, atol=1e-5)
            assert f"{name}{DELTA}" in given[at]
    return sections


def clean_shape(model, feeds, name):
    """Return the shape of an inner tensor."""
    return moved(model, name, np.zeros((), np.float32), feeds, [name])[name].shape


def moved(model, name, delta, feeds, seen):
    """Return tensors of ``model`` when ``delta`` is added to the tensor ``name``."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    (at,) = (i for i, node in enumerate(other.graph.node) if name in node.output)
    other.graph.node[at].output[:] = ["before"]
    other.graph.initializer.append(onnx.numpy_helper.from_array(delta, "delta"))
    other.graph.node.insert(at + 1, onnx.helper.make_node("Add", ["before", "delta"], [name]))
    known = {item.name for item in (*other.graph.output, *other.graph.input)}
    other.graph.output.extend(onnx.ValueInfoProto(name=x) for x in seen if x not in known)
    return Session(other).run(feeds)


def test_tensors_that_cross_a_cut(build, x):
    sections = hold(build(LONG, w=(6, 6)), {"x": x}, INSIDE)
    assert [section.perturbed for section in sections] == [[name] for name in INSIDE]
    reads = [set(section.reads) for section in sections]
    assert reads[:5] == [{"x"}, {"t0"}, {"t1"}, {"t2", "t0"}, {"t3"}]
    assert set(sections[5].alive) == {"early", "t2", "t5", "x"}


def test_the_order_in_which_they_are_asked_for_does_not_matter(build):
    model = build(LONG, w=(6, 6))
    forth, back = (
        [(section.perturbed, section.reads, section.alive) for section in found]
        for found in (
            sections_of(model, probes_of(model, names), ["y"]) for names in (INSIDE, INSIDE[::-1])
        )
    )
    assert forth == back


def test_many_tensors_make_no_more_than_twelve_sections(build):
    model = build(chained(100))
    sections = sections_of(model, probes_of(model, [f"t{i}" for i in range(1, 101)]), ["y"])
    counts = [len(section.perturbed) for section in sections]
    assert (len(counts), sum(counts)) == (12, 100)
    assert max(counts) - min(counts) <= 1


def test_sections_are_short_where_units_are_dear(build):
    model = build(chained(96))
    probes = probes_of(
        model, [f"t{i}" for i in range(1, 97)], lambda name: 25.0 if int(name[1:]) <= 48 else 1.0
    )
    counts = [len(section.perturbed) for section in sections_of(model, probes, ["y"])]
    assert (len(counts), sum(counts)) == (12, 96)
    assert sum(counts[:10]) == 48  # five times as many sections where a unit costs 25 times as much
    assert max(counts[:10]) < min(counts[10:])


def test_a_cut_is_made_where_few_tensors_cross(build):
    blocks = " ".join(
        f"a{i} = Tanh (r{i}) b{i} = Tanh (a{i}) r{i + 1} = Add (b{i}, r{i})" for i in range(24)
    )
    model = build(f"g (float[8] r0) => (float[8] y) {{ {blocks} y = Relu (r24) }}")
    outputs = [name for i in range(24) for name in (f"a{i}", f"b{i}", f"r{i + 1}")]
    sections = sections_of(model, probes_of(model, outputs), ["y"])
    assert len(sections) == 12
    assert all(len(section.alive) == 1 for section in sections)


def test_no_cut_parts_a_unit(build):
    model = build(chained(24))
    probes = probes_of(model, ["t8", "t24"])
    for probe, span in zip(probes, (range(8), range(8, 24)), strict=True):
        probe.unit.nodes[:] = [SimpleNamespace(name=f"n{i}") for i in span]
    sections = sections_of(model, probes, ["y"])
    assert [section.perturbed for section in sections] == [["t8"], ["t24"]]
    assert [len(section.nodes) for section in sections] == [8, 17]


def test_what_nothing_wanted_hangs_on_is_left_out(build):
    model = build(
        """g (float[2, 6] x) => (float[2, 6] y, float[2, 6] p) {
            y = MatMul (x, w) p = Softmax (y) aside = Tanh (x)
        }""",
        w=(6, 6),
    )
    probes = probes_of(model, ["y", "p", "aside"])
    sections = sections_of(model, probes, ["y"])
    assert [section.perturbed for section in sections] == [["y"]]
    assert [node.op_type for section in sections for node in section.nodes] == ["MatMul"]
    feeds = {"x": np.ones((2, 6), np.float32)}
    found = measure(model, probes, GRIDS, [feeds], lambda _: None)
    assert found["unit y"] > 0.0
    assert found["unit aside"] == 0.0


def test_what_a_branch_reads_from_outside(build, x):
    model = build(branch("z = Add (t1, t3)"), w=(6, 6))
    sections = hold(model, {"x": x, "c": np.ones((), bool)}, ["t0", "t1", "t2", "t3", "t5"])
    assert {"c", "t1", "t3"} <= set(sections[-1].reads)


def test_a_sequence_may_cross_a_cut(build, x):
    text = """g (float[2, 6] x) => (float[2, 6] y) {
        t0 = MatMul (x, w) s = SequenceConstruct (t0, x) t1 = MatMul (x, w) t2 = Tanh (t1)
        t3 = MatMul (t2, w) zero = Constant <value_int = 0> ()
        t4 = MatMul (t3, w) p = SequenceAt (s, zero) y = Add (t4, p)
    }"""
    sections = hold(build(text, w=(6, 6)), {"x": x}, ["t0", "t1", "t2", "t3", "t4"])
    assert "s" in sections[-1].reads


@pytest.fixture
def deep(build):
    """A residual model with a unit in every section, and some with two; its probes and feeds."""
    blocks = " ".join(
        f"m{i} = MatMul (r{i}, w) a{i} = Tanh (m{i}) r{i + 1} = Add (a{i}, r{i})" for i in range(16)
    )
    model = build(
        f"g (float[4, 16] r0) => (float[4, 16] y) {{ {blocks} y = Relu (r16) }}", w=(16, 16)
    )
    rng = np.random.default_rng(3)
    feeds = [{"r0": rng.standard_normal((4, 16)).astype(np.float32)} for _ in range(2)]
    return model, probes_of(model, [f"m{i}" for i in range(16)]), feeds


def test_a_measurement_is_what_moving_each_tensor_does(deep):
    model, probes, feeds = deep
    ticks = []
    found = measure(model, probes, GRIDS, feeds, ticks.append)
    assert ticks == list(range(1, 33))
    for probe in probes:
        name, errors = probe.unit.output.name, []
        for feed in feeds:
            read = probe.unit.inputs[0].name
            clean = moved(model, name, np.zeros((), np.float32), feed, [read, name]) | feed
            rounded = np.round(clean[read] / np.float32(0.05)).clip(-128, 127) * np.float32(0.05)
            delta = rounded @ probe.unit.rounded - clean[name]
            dirty = moved(model, name, delta, feed, [])
            errors.append(np.sum((dirty["y"] - clean["y"]) ** 2) / np.sum(clean["y"] ** 2))
        np.testing.assert_allclose(found[probe.unit.name], np.mean(errors), rtol=1e-3)


def test_sessions_of_sections_keep_no_arena(deep):
    model, probes, feeds = deep
    with ThreadPoolExecutor(1) as pool:
        chain = Chain(model, sections_of(model, probes, ["y"]), GRIDS, pool)
        chain.clean(feeds[0])
    opened = [*chain._plain, *(each.result() for each in (*chain._stirred, *chain._twins))]
    options = [each._session.get_session_options() for each in opened]
    assert len(options) == 3 * len(chain.sections)
    assert not any(each.enable_cpu_mem_arena for each in options)


def test_near_is_like_far(deep):
    model, probes, feeds = deep
    far = measure(model, probes, GRIDS, feeds, lambda _: None)
    near = measure(model, probes, GRIDS, feeds, lambda _: None, near=True)
    names = list(far)
    a, b = (np.log([each[name] for name in names]) for each in (far, near))
    assert np.abs(a - b).max() < 1.0  # alone they differ by much more
    assert np.ptp(a) > 2.0
    assert not np.array_equal(a, b)
    sections = sections_of(model, probes, ["y"])
    alone = [f"unit {each.perturbed[0]}" for each in sections if len(each.perturbed) == 1]
    assert 4 <= len(alone) < len(sections)
    for name in alone:  # the only one to which what is found at the output can belong
        np.testing.assert_allclose(near[name], far[name], rtol=1e-5)


def test_near_goes_on_to_where_there_are_numbers(build):
    text = """g (float[4, 8] x) => (float[4, 1] y) {
        t0 = MatMul (x, w) t1 = Tanh (t0) i = ArgMax <axis = 1> (t1) j = Add (i, i) k = Neg (j)
        l = Abs (k) y = Cast <to = 1> (l)
    }"""
    model = build(text, w=(8, 8))
    probes = probes_of(model, ["t0"])
    for name in ("i", "j", "k", "l"):  # integer tensors, which end sections
        probes.append(Probe(SimpleNamespace(**vars(probes[0].unit)), writes_codes=False))
        probes[-1].unit.output = SimpleNamespace(name=name)
    sections = sections_of(model, probes, ["y"])
    clean = {name: np.zeros(1, np.int64) for name in "ijkl"} | {"y": np.zeros(1, np.float32)}
    sample = _sensitivity._Sample(SimpleNamespace(sections=sections), clean, [], ["y"])
    assert len(sections) > 3
    assert sample.telling(0) == len(sections)


@pytest.mark.parametrize("near", [False, True])
def test_when_a_run_fails_the_rest_is_not_waited_for(deep, monkeypatch, near):
    model, probes, feeds = deep
    runs = []

    def error(_self, names, *_):
        runs.append(names)
        time.sleep(0.2 * (len(runs) > 1))
        raise RuntimeError("no")

    monkeypatch.setattr(_sensitivity._Sample, "error", error)
    monkeypatch.setattr(_sensitivity, "cores", lambda: 1)
    with pytest.raises(RuntimeError, match="no"):
        measure(model, probes, GRIDS, feeds, lambda _: None, near=near)
    assert len(runs) <= 3


@pytest.mark.parametrize(
    ("reference", "dirty", "want"),
    [
        ([3.0, 4.0], [3.0, 5.0], 1 / 25),
        ([3.0, -np.inf, 4.0], [3.0, -np.inf, 5.0], 1 / 25),
        ([3.0, 7.0, 4.0], [3.0, np.nan, 5.0], 1 / 25),
        ([3e25, 4e25], [3e25, 5e25], 1 / 25),
        ([3e-13, 4e-13], [3e-13, 5e-13], 1 / 25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
    ],
)
def test_relative_error(reference, dirty, want):
    clean, found = ({"y": np.array(x, np.float32)} for x in (reference, dirty))
    assert _sensitivity._relative_error(clean, found) == pytest.approx(want, rel=1e-5)


def test_half_precision_is_summed_in_single():
    clean = {"y": np.full(4096, 16.0, np.float16)}
    dirty = {"y": np.full(4096, 24.0, np.float16)}
    assert _sensitivity._relative_error(clean, dirty) == pytest.approx(0.25)


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((2, 6)).astype(np.float32)
