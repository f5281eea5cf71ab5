# SPDX-License-Identifier: Apache-2.0
"""Clipping to where a function is alive changes what it gives by less than was allowed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhyvit_onnx.kernels.tails import FUNCTIONS, POINTS, alive

SHARES = (0.25 / 255, 0.25 / 63, 0.25 / 15)


@pytest.mark.parametrize("name", FUNCTIONS)
@given(
    low=st.floats(-60, 5), width=st.floats(0.01, 80), share=st.sampled_from(SHARES)
)  # fmt: skip
def test_what_is_cut_off_is_flat(name, low, width, share):
    function, high = FUNCTIONS[name], low + width
    bottom, top = alive(function, low, high, share)
    assert min(low, 0.0) <= bottom <= 0.0 <= top <= max(high, 0.0)
    x = np.linspace(low, high, 4 * POINTS)
    moved = np.abs(function(np.clip(x, bottom, top)) - function(x)).max()
    # between two of the places that are looked at, a function of slope 1.1 moves by that much more
    ends = (min(low, 0.0), max(high, 0.0))
    span = np.ptp(function(np.linspace(*ends, 4 * POINTS)))
    assert moved <= share * span + 1.2 * max(-ends[0], ends[1]) / POINTS


def test_the_ends_of_known_functions():
    for name, end in (("HardSwish", -3.0), ("Relu", 0.0)):
        found = alive(FUNCTIONS[name], -24.0, 14.0, SHARES[0])
        assert found == pytest.approx((end, 14.0), abs=0.1)
    low, high = alive(FUNCTIONS["Silu"], -24.0, 14.0, SHARES[0])
    assert -8.0 < low < -5.0
    assert high == pytest.approx(14.0, abs=0.02)


def test_what_lies_inside_stays():
    assert alive(FUNCTIONS["Gelu"], -0.5, 1.0, SHARES[0]) == pytest.approx((-0.5, 1.0), abs=0.01)


def test_coarser_grids_are_cut_further():
    ends = [alive(FUNCTIONS["Gelu"], -12.0, 6.0, share)[0] for share in SHARES]
    assert ends == sorted(ends)
    assert ends[0] < ends[-1]
