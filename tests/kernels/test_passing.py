# SPDX-License-Identifier: Apache-2.0
"""Which tensors are kept sample by sample, found by running."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the executor runs in torch, an extra")

from qhyvit_onnx.kernels.executor import Executor  # noqa: E402
from qhyvit_onnx.kernels.passing import passing  # noqa: E402
from qhyvit_onnx.programs import program_of  # noqa: E402

FREE = "g (float[n, 3, 4] x) => (float[n, 4] y) "
BODY = """{
    k = Exp (c)
    a = Mul (x, k)
    t = Transpose <perm = [1, 0, 2]> (a)
    back = Transpose <perm = [1, 0, 2]> (t)
    shape = Shape (x)
    y = ReduceMean <axes = [1], keepdims = 0> (back)
}"""
STATIC = "g (float[1, 3, 4] x) => (float[1, 12] y) "


def looked(build, text, **arrays):
    executor = Executor(program_of(build(text, **arrays)))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 3, 4)).astype(np.float32)} for _ in range(2)]
    return passing(executor, *feeds)


def test_what_a_free_batch_holds(build):
    seen = looked(build, FREE + BODY, c=(4,))
    assert seen.together
    assert {"x", "a", "back", "y"} <= seen.portable
    assert "t" not in seen.portable  # samples lie along its second axis
    assert set(seen.fixed) == {"k"}  # the shape knows how many samples there are
    assert seen.elements["a"] == 12


def test_a_shape_with_the_batch_written_in(build):
    body = "{ a = Mul (x, c) s = Shape (x) b = Reshape (a, s) y = Reshape (b, to) }"
    seen = looked(build, STATIC + body, c=(4,), to=np.array([1, 12]))
    assert not seen.together
    assert {"x", "a", "y"} <= seen.portable
    assert "s" in seen.fixed


def test_samples_that_look_at_each_other(build):
    body = "{ m = ReduceMean <axes = [0], keepdims = 1> (x) d = Sub (x, m) y = Flatten (d) }"
    seen = looked(build, "g (float[n, 3, 4] x) => (float[n, 12] y) " + body)
    assert not seen.together
