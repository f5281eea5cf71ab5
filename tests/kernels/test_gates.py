# SPDX-License-Identifier: Apache-2.0
"""The gate that makes a GELU of a sigmoid, held to GELU itself on every code."""

import numpy as np
import pytest
from scipy.special import erf, expit

from qhyvit_onnx.grid import Grid, grid_for
from qhyvit_onnx.kernels.gates import ROUNDING, gelu_gate
from qhyvit_onnx.kernels.observers import Observer


def seen(*values):
    observer = Observer(0)
    observer.add(np.concatenate([np.ravel(v) for v in values]).astype(np.float32)[None])
    return observer.stats()


def drawn(width=1.3, size=4000):
    return np.random.default_rng(0).normal(-0.2, width, size)


def gelu(x):
    return x * 0.5 * (1 + erf(x / 2**0.5))


def computed(gate, grid):
    """Return every x of ``grid``, and what the two integer kernels make of it, in floats."""
    x = (np.arange(grid.top + 1) - grid.zero_point) * grid.scale
    codes = np.clip(np.rint(expit(x * gate.slope) / gate.written.scale), 0, 255)
    return x, x * (codes - gate.read.zero_point) * gate.read.scale


@pytest.mark.parametrize("low", [-2.5, -2.9, -4.0])
@pytest.mark.parametrize("bits", [8, 6, 4])
def test_the_error_is_what_it_says_and_hidden_by_rounding(low, bits):
    grid, out = grid_for(low, 6.0, bits=bits), grid_for(-0.17, 6.0, bits=bits)
    gate = gelu_gate(grid, out, seen(np.clip(drawn(), low, 6.0)))
    x, got = computed(gate, grid)
    samples = np.clip(np.rint(drawn() / grid.scale) + grid.zero_point, 0, grid.top).astype(int)
    off = (got - gelu(x))[samples] / out.scale
    assert np.sqrt(np.mean(off**2)) == pytest.approx(gate.error, rel=0.2)
    assert abs(off.mean()) < 0.1
    assert gate.hides
    assert gate.error < ROUNDING


def test_large_values_pass_and_the_lowest_are_gone():
    grid = grid_for(-2.8, 12.0)
    gate = gelu_gate(grid, grid_for(-0.17, 12.0), seen(np.clip(drawn(3.0), -2.8, 12.0)))
    x, got = computed(gate, grid)
    np.testing.assert_allclose(got[x > 4], x[x > 4], rtol=1e-6)
    assert np.abs(got[x < -2.6]).max() < 0.03


def test_it_is_nearer_than_the_published_one_everywhere_it_matters():
    grid = grid_for(-2.8, 6.0)
    gate = gelu_gate(grid, grid_for(-0.17, 6.0), seen(drawn()))
    x, got = computed(gate, grid)
    middle = np.abs(x) < 2.6
    plain = np.abs(x * expit(1.702 * x) - gelu(x))[middle].max()
    assert np.abs(got - gelu(x))[middle].max() < 0.8 * plain


def test_a_wide_x_with_fine_steps_behind_it_is_refused():
    grid, out = grid_for(-9.0, 3.0), grid_for(-0.17, 3.0)
    assert not gelu_gate(grid, out, seen(np.random.default_rng(0).uniform(-9, 3, 4000))).hides


def test_nothing_seen_but_zeros():
    assert gelu_gate(Grid(0.03, 80), Grid(0.03, 6), seen(np.zeros(9))).error < 1.0


def test_what_is_seen_decides():
    grid, out = grid_for(-2.8, 6.0), grid_for(-0.17, 6.0)
    narrow, wide = (gelu_gate(grid, out, seen(drawn(width).clip(-2.8, 6))) for width in (0.3, 2.5))
    assert (narrow.slope, narrow.written) != (wide.slope, wide.written)
