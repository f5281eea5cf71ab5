# SPDX-License-Identifier: Apache-2.0
"""The summary on regions, bridges and folds: one line each, whatever their number."""

import pytest

from qhyvit_onnx.report import (
    SCHEMA,
    BridgeRecord,
    CureRecord,
    DataRecord,
    FoldRecord,
    RegionRecord,
    Report,
)
from qhyvit_onnx.summary import print_summary


def fold(cure, before, after):
    return FoldRecord(tensors=["t"], cure=cure, error_before=before, error_after=after)


def bridge(direction, size):
    return BridgeRecord(
        direction=direction, size=size, why=f"{size}: meets", nodes=["n"], inputs=[], outputs=[]
    )


@pytest.fixture
def told(capsys, tmp_path):
    """Return a function: parts of a report -> the lines of its summary."""

    def summary(**parts):
        data = DataRecord(
            kind="images", path="p", samples=4, recipe="", deployable=True, sha256="", notes=[]
        )
        fields = {
            "schema_version": SCHEMA, "tool_version": "1", "onnxruntime_version": "1",
            "target": "arm64", "target_summary": "ARM", "precision": "w8a8", "data": data,
            "passes": [], "units": [], "float_nodes": {}, "regions": [], "bridges": [],
            "folds": [], "one_sided": [], "outputs": [], "held_back": True,
            "arithmetic": "exact", "latency": None, "bytes_before": 10, "bytes_after": 5,
        }  # fmt: skip
        print_summary(Report(**fields | parts), tmp_path / "net.onnx", [])
        return capsys.readouterr().out.splitlines()

    return summary


def line(lines, label):
    (found,) = [text for text in lines if text.startswith(label)]
    return found.removeprefix(label).strip()


def test_regions_and_bridges_are_counted(told):
    sides = ["local", "global", "local", "global", "local"]
    regions = [RegionRecord(side=side, size="8x8", nodes=["n"]) for side in sides]
    bridges = [bridge(way, size) for size in ("16x16", "8x8") for way in ("in", "out")]
    lines = told(regions=regions, bridges=[*bridges, bridge("in", "8x8")])
    assert line(lines, "regions") == "3 local, 2 global"
    assert line(lines, "bridges") == "3 in at 16x16, 8x8; 2 out at 16x16, 8x8"


def test_folds_tell_what_they_gained(told):
    folds = [fold("scale", 3.0, 1.0), fold("off", 1.0, 1.0), fold("scale", 4.0, 2.0)]
    found = line(told(folds=folds), "folds")
    assert found == "classes of channels: 2 scaled, 1 left; predicted error -50%"


def test_one_sided_tensors_are_counted_by_cure(told):
    cures = [CureRecord(tensor="t", low=1.0, high=2.0, cure=c) for c in ("cover", "shift", "cover")]
    assert line(told(one_sided=cures), "one-sided") == "tensors cured: 2 by cover, 1 by shift"


def test_nothing_found_is_said(told):
    lines = told()
    assert line(lines, "regions").startswith("none")
    assert line(lines, "bridges") == "none"
    assert line(lines, "folds") == "no class of channels"
    assert line(lines, "one-sided") == "no tensor"


def test_a_net_of_many_bridges_still_fits_one_screen(told):
    regions = [RegionRecord(side="local", size="8x8", nodes=["n"])] * 200
    lines = told(regions=regions, bridges=[bridge("in", f"{n}x{n}") for n in range(40)])
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
