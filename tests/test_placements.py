# SPDX-License-Identifier: Apache-2.0
"""Float is emitted where int8 is slower on this machine, unless somebody asked for int8."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from qhyvit_onnx.cli import main
from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig, Effort, Extent, Verification
from qhyvit_onnx.errors import ConfigError, PassError
from qhyvit_onnx.explain import LEFT_FLOAT
from qhyvit_onnx.passes.normalise import Normalise
from qhyvit_onnx.passes.reconstruct import Reconstruct
from qhyvit_onnx.pipeline import Watcher, default_pipeline
from qhyvit_onnx.placements import OUTRUN, Parts
from qhyvit_onnx.runtime import Session
from qhyvit_onnx.sweep import Bound
from qhyvit_onnx.targets import find_target
from tests.test_sweep import CALIB, images, net


@pytest.fixture
def clock(monkeypatch):
    """Let int8 take the given multiple of float's time."""

    def set_(ratio):
        times = ([0.001] * 10, [0.001 * ratio] * 10)
        monkeypatch.setattr("qhyvit_onnx.passes.verify.paired_times", lambda *_, **__: times)

    return set_


def compiled(target="auto", bound=None, **more):
    config = CompileConfig(
        target=target, effort=Effort.FAST, verification=Verification(samples=2), **more
    )
    return compile_model(net(), CALIB, config, bound=bound)


def quantizers(model):
    return sum(node.op_type == "QuantizeLinear" for node in model.graph.node)


def test_auto_stays_float_where_int8_is_slower(clock):
    clock(1.5)
    found = compiled()
    assert quantizers(found.model) == 0
    assert found.report.int8_units == 0
    assert found.report.outrun.ratio == pytest.approx(1.5)
    x = images(2, 3)
    np.testing.assert_allclose(
        Session(found.model).run({"x": x})["y"], Session(net()).run({"x": x})["y"], atol=1e-4
    )
    (metadata,) = (item.value for item in found.model.metadata_props if item.key == LEFT_FLOAT)
    assert OUTRUN in json.loads(metadata).values()
    assert {unit.reason for unit in found.report.units} >= {OUTRUN}
    assert any(unit.noise is not None for unit in found.report.units)
    names = [item.name for item in found.report.passes]
    assert names.count("place") == names.count("verify") == 2
    assert names.count("calibrate") == 1


def test_auto_is_int8_where_that_is_faster(clock):
    clock(0.9)
    found = compiled()
    assert quantizers(found.model) > 0
    assert found.report.outrun is None
    assert [item.name for item in found.report.passes].count("verify") == 1


@pytest.mark.parametrize(
    "asked",
    [{"target": "x64-vnni"}, {"placement": Extent.FULL}, {"force_int8": ("*",)}],
    ids=["target", "full", "forced"],
)
def test_what_was_asked_for_is_done_though_slower(clock, asked):
    clock(1.5)
    found = compiled(**asked)
    assert quantizers(found.model) > 0
    assert found.report.outrun is None
    assert found.report.latency.ratio == pytest.approx(1.5)


def test_without_a_measurement_there_is_nothing_to_go_by():
    config = CompileConfig(effort=Effort.FAST, verification=Verification(samples=2, rounds=0))
    assert quantizers(compile_model(net(), CALIB, config).model) > 0


def test_a_bound_that_int8_holds_slowly_is_held_by_float(clock, tmp_path):
    clock(1.5)
    np.save(tmp_path / "eval.npy", images(20, 2))
    found = compiled(bound=Bound(max_drop=100.0, data=tmp_path / "eval.npy"))
    assert quantizers(found.model) == 0
    assert found.report.front[-1].holds
    assert found.report.outrun is not None


def test_the_user_is_told(clock, tmp_path, capsys):
    clock(1.5)
    onnx.save(net(), tmp_path / "net.onnx")
    np.save(tmp_path / "calib.npy", images(8, 1))
    files = [str(tmp_path / name) for name in ("net.onnx", "calib.npy")]
    assert main(["compile", files[0], "--calib", files[1], "--effort", "fast", "-q"]) == 0
    assert "int8 takes 1.50x the time of float" in (err := capsys.readouterr().err)
    assert "the model stays float (--target x64-" in err or "(--target arm64" in err


def test_the_order_of_all_passes_is_checked_before_any_runs(state):
    config = CompileConfig(effort=Effort.FAST)
    parts = Parts.of(default_pipeline(config, find_target("arm64", frozenset())))
    wrong = replace(parts, between=parts.between[1:])
    fresh = state(net())
    with pytest.raises(PassError, match="which no earlier pass gives"):
        wrong.once(fresh, Watcher())
    assert not fresh.facts


def test_passes_that_place_nothing_have_no_parts():
    with pytest.raises(ConfigError, match="place nothing"):
        Parts.of([Normalise(), Reconstruct()])
