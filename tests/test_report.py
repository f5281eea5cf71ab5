# SPDX-License-Identifier: Apache-2.0
"""The report: its schema, its JSON, and how the summary words it."""

import json

import pytest
from pydantic import ValidationError

from qhyvit_onnx.facts import Paired
from qhyvit_onnx.report import SCHEMA, DataRecord, Latency, OutputRecord, Report, UnitRecord
from qhyvit_onnx.summary import group_reasons, print_summary, slower


def unit(name, kind, reason=""):
    kernel = "" if reason else "QLinearConv"
    return UnitRecord(
        name=name, kind=kind, int8=not reason, kernel=kernel, reason=reason, noise=None
    )


@pytest.fixture
def report():
    data = DataRecord(
        kind="images", path="cats", samples=64, recipe="unit", deployable=True, sha256="", notes=[]
    )
    output = OutputRecord(name="y", sqnr_db=31.25, cosine=0.9991, agreement=0.975, samples=16)
    return Report(
        schema_version=SCHEMA,
        tool_version="1",
        onnxruntime_version="1",
        target="arm64",
        target_summary="ARM",
        precision="w8a8",
        data=data,
        passes=[],
        units=[
            unit("a", "conv"),
            unit("b", "conv", "12 multiply-adds per element: too few"),
            unit("c", "add", "3 multiply-adds per element: too few"),
            unit("d", "add", "3-channel stem: slower"),
        ],
        float_nodes={"Softmax": 2},
        bridges=[],
        folds=[],
        one_sided=[],
        outputs=[output],
        held_back=True,
        arithmetic="exact",
        latency=Latency(float_ms=2.0, int8_ms=3.0),
        bytes_before=2_000_000,
        bytes_after=600_000,
    )


def test_json_round_trip(report):
    text = report.model_dump_json()
    assert Report.model_validate_json(text) == report
    assert json.loads(text)["schema_version"] == SCHEMA == 1


def test_schema_refuses_what_it_does_not_know(report):
    fields = json.loads(report.model_dump_json())
    with pytest.raises(ValidationError, match="speed"):
        Report.model_validate({**fields, "speed": 1})
    fields.pop("units")
    with pytest.raises(ValidationError, match="units"):
        Report.model_validate(fields)


def test_reasons_that_differ_in_numbers_are_one_line(report):
    assert group_reasons(report.units[1:]) == [
        ("3 to 12 multiply-adds per element: too few", 2),
        ("3-channel stem: slower", 1),
    ]


def test_excluded_reasons_keep_their_patterns():
    units = [unit(n, "conv", f"excluded by 'blocks {n} *'") for n in ("1", "2")]
    assert len(group_reasons(units)) == 2


def test_summary_is_plain_and_narrow(report, capsys, tmp_path):
    print_summary(report, tmp_path / "net.onnx", [tmp_path / "net.qdq.onnx"])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "\x1b" not in out
    assert all(line == line.rstrip() for line in lines)
    for words in (
        "2.00 MB",
        "0.30x",
        "1.50x",
        "31.2 dB",
        "97.5%",
        "2 Softmax",
        "held back",
        "exact",
    ):
        assert words in out


def test_slower_is_said(report):
    assert slower(report).startswith("int8 takes 1.50x the time")
    assert slower(report.model_copy(update={"latency": None})) == ""
    kept = report.model_copy(update={"outrun": Latency(float_ms=2.0, int8_ms=5.0)})
    assert slower(kept).startswith("int8 takes 2.50x the time of float on this machine: the model ")
    assert "--target arm64" in slower(kept)


def test_times_become_a_record_by_threads():
    assert Latency.of({}) is None
    one = Latency.of({1: Paired(2.0, 1.0, slower=False)})
    assert (one.float_ms, one.int8_ms, one.ratio, one.two_threads) == (2.0, 1.0, 0.5, None)
    two = Latency.of({1: Paired(2.0, 1.0, slower=False), 2: Paired(1.0, 3.0, slower=True)})
    assert (two.ratio, two.two_threads.ratio) == (0.5, 3.0)
