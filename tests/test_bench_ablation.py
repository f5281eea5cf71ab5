# SPDX-License-Identifier: Apache-2.0
"""The table of the ablation: one line a model, stage after stage, and whether the order holds."""

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.delitem(sys.modules, "bench_ablation", raising=False)
    from bench_ablation import STAGES, ablation

    def made(*sqnrs, draws=1, own=(1.0, 2.0, 3.0)):
        return ablation([
            {"model": "net", "precision": "w8a8", "recipe": name, "float top-1": 0.9,
             "top-1": 0.8, "sqnr_db": sqnr + draw, "own_sqnr_db": mine}
            for name, sqnr, mine in zip(STAGES, sqnrs, own, strict=True)
            for draw in range(draws)
        ])  # fmt: skip

    return made


def test_a_line_holds_every_stage(ablation):
    (line,) = ablation(10.0, 12.0, 13.0)
    assert line["scale only"] == "10.0 dB"
    assert line["+ scheme"] == "13.0 dB"
    assert line["+ granularity, top-1"] == "80.00"
    assert line["float top-1"] == "90.00"
    assert line["as in the paper"] == "yes"


@pytest.mark.parametrize("sqnrs", [(12.0, 10.0, 13.0), (10.0, 13.0, 12.0), (10.0, 10.0, 12.0)])
def test_another_order_is_told(ablation, sqnrs):
    assert ablation(*sqnrs)[0]["as in the paper"] == "no"


def test_draws_are_averaged(ablation):
    assert ablation(10.0, 12.0, 13.0, draws=3)[0]["scale only"] == "11.0 dB"


def test_the_order_on_the_calibration_samples_is_told_apart(ablation):
    (line,) = ablation(10.0, 12.0, 13.0, own=(5.0, 4.0, 6.0))
    assert line["+ granularity, own"] == "4.0 dB"
    assert line["as in the paper"] == "yes"
    assert line["own as in the paper"] == "no"
