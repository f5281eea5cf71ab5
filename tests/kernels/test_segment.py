# SPDX-License-Identifier: Apache-2.0
"""A segment costs what its outputs lose, however the network takes its samples."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the executor runs in torch, an extra")

from qhyvit_onnx.kernels.executor import Executor  # noqa: E402
from qhyvit_onnx.kernels.segment import Segment, record  # noqa: E402
from qhyvit_onnx.programs import program_of  # noqa: E402

BODY = "a = MatMul (x, w) b = Relu (a) c = MatMul (b, v) y = Tanh (c)"
FREE = f"g (float[N, 3, 8] x) => (float[N, 3, 6] y) {{ {BODY} }}"
ONE = """
g (float[1, 3, 8] x) => (float[1, 4, 6] y) {
    a = MatMul (x, w) b = Relu (a) f = Reshape (b, flat) c = Gemm (f, v) y = Reshape (c, back)
}
"""
MIXED = (
    "g (float[N, 3, 8] x) => (float[N, 3, 8] y) { a = ReduceMean <axes = [0]> (x) y = Sub (x, a) }"
)
ONE_ARRAYS = {"w": (8, 16), "v": (16, 8), "flat": np.int64([3, 16]), "back": np.int64([1, 4, 6])}
ARRAYS = {"w": (8, 16), "v": (16, 6)}


def samples(count=3, shape=(1, 3, 8)):
    rng = np.random.default_rng(8)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def executor(build):
    return lambda text, **arrays: Executor(program_of(build(text, **arrays)))


def test_the_cost_is_the_weighted_error_of_the_outputs(executor):
    runs = executor(FREE, **ARRAYS)
    seen = record(runs, samples(), ("a", "b", "c"))
    segment = Segment(runs, seen, ["a"], {"b": 2.0, "c": 0.5})

    def halved(x):
        return x / 2

    def doubled(x):
        return 2 * x

    want = 0.0
    for tensors in seen:
        a, b, c = (tensors[name].numpy().astype(np.float64) for name in "abc")
        want += 2.0 * np.square(b / 2).sum() + 0.5 * np.square(c / 2).sum()
        assert a.min() < 0
    assert segment.cost({"a": halved}) == pytest.approx(want, rel=1e-5)
    # what leaves is seen as its readers see it
    lost = 0.5 * sum(float(item["c"].square().sum()) for item in seen)
    assert segment.cost({"c": doubled}) == pytest.approx(lost, rel=1e-5)
    assert segment.cost({}) == 0.0


def test_samples_run_in_one_batch_where_they_may(executor):
    runs = executor(FREE, **ARRAYS)
    (together,) = record(runs, samples(), ("c", "y"))
    assert together["y"].shape == (3, 3, 6)
    for place, sample in enumerate(samples()):
        (alone,) = record(runs, [sample], ("c",))
        # the same sums in another order
        torch.testing.assert_close(together["c"][place : place + 1], alone["c"])


@pytest.mark.parametrize(
    ("text", "arrays"), [(ONE, ONE_ARRAYS), (MIXED, {})], ids=["counted", "mixed"]
)
def test_samples_run_one_by_one_where_a_batch_is_another_thing(executor, text, arrays):
    runs = executor(text, **arrays)
    seen = record(runs, samples(), ("y",))
    assert len(seen) == 3
    for found, sample in zip(seen, samples(), strict=True):
        (alone,) = record(runs, [sample], ("y",))
        torch.testing.assert_close(found["y"], alone["y"])


def test_samples_of_different_sizes_run_one_by_one(executor):
    runs = executor(FREE.replace("3,", "T,"), **ARRAYS)
    mixed = [*samples(1), *samples(2, (1, 5, 8))]
    assert [tuple(found["y"].shape) for found in record(runs, mixed, ("y",))] == [
        (1, 3, 6), (1, 5, 6), (1, 5, 6),
    ]  # fmt: skip
