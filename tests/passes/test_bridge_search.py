# SPDX-License-Identifier: Apache-2.0
"""Bridges as units: scales move downhill on some samples, and stay unless others agree."""

from dataclasses import replace

import numpy as np
import pytest

from qhyvit_onnx.grid import Grid
from qhyvit_onnx.passes._searching.descent import FACTOR, STEPS, descend

START = {name: Grid(1.0, 128) for name in "abc"}


def valley(**best):
    """Return a cost that is least where each scale has its best value."""

    def cost(grids):
        return 1.0 + sum(np.log(grids[name].scale / value) ** 2 for name, value in best.items())

    return cost


def test_every_scale_goes_to_its_best():
    lead = valley(a=FACTOR**2, b=FACTOR**-3, c=1.0)
    found = descend("abc", START, lead, lead)
    assert set(found) == {"a", "b"}
    assert found["a"].scale == pytest.approx(FACTOR**2)
    assert found["b"].scale == pytest.approx(FACTOR**-3)
    assert {grid.zero_point for grid in found.values()} == {128}


def test_scales_that_hang_together_are_found_in_rounds():
    def cost(grids):
        a, b = (np.log(grids[name].scale) / np.log(FACTOR) for name in "ab")
        return 10 + (a - b) ** 2 + 0.2 * (a + b - 4) ** 2

    found = descend("ab", START, cost, cost)
    assert [round(np.log(found[n].scale) / np.log(FACTOR)) for n in "ab"] == [2, 2]


def test_no_scale_goes_further_than_its_steps():
    found = descend("a", START, valley(a=100.0), valley(a=100.0))
    assert found["a"].scale == pytest.approx(FACTOR**STEPS)


def test_what_the_judge_finds_no_better_is_not_taken():
    assert descend("ab", START, valley(a=2.0, b=2.0), valley(a=0.5, b=0.5)) == {}
    assert descend("ab", START, valley(a=2.0, b=2.0), lambda _: 1.0) == {}


@pytest.mark.parametrize("seed", range(20))
def test_the_judge_never_loses(seed):
    rng = np.random.default_rng(seed)
    lead, judge = (valley(**dict(zip("abc", np.exp(rng.normal(0, 0.2, 3)), strict=True)))
                   for _ in range(2))  # fmt: skip
    found = descend("abc", START, lead, judge)
    assert judge({**START, **found}) <= judge(START)
    if found:
        assert lead({**START, **found}) < lead(START)


def test_a_gain_that_may_be_chance_moves_nothing():
    def cost(grids):
        return 1.0 - 1e-4 * (grids["a"].scale > 1.0)

    assert descend("a", START, cost, cost) == {}


def test_what_is_not_named_stays():
    lead = valley(a=2.0, b=2.0)
    assert set(descend("b", START, lead, lead)) == {"b"}
    assert START == {name: Grid(1.0, 128) for name in "abc"}


torch = pytest.importorskip("torch", reason="bridges run in torch, an extra")

from qhyvit_onnx.config import CompileConfig, Extent, Guard  # noqa: E402
from qhyvit_onnx.data import Feeds  # noqa: E402
from qhyvit_onnx.facts import BRIDGES, EVIDENCE, SEARCHED  # noqa: E402
from qhyvit_onnx.kernels.evidence import Evidence  # noqa: E402
from qhyvit_onnx.passes._searching.bridges import search_bridges  # noqa: E402
from qhyvit_onnx.passes.search_scales import SearchScales  # noqa: E402
from qhyvit_onnx.pipeline import default_pipeline  # noqa: E402
from qhyvit_onnx.state import State  # noqa: E402
from qhyvit_onnx.targets import find_target  # noqa: E402
from qhyvit_onnx.units import find_units, is_softmax  # noqa: E402
from tests.blocks import mobilevit_v1  # noqa: E402

ARM = find_target("arm64", frozenset())
