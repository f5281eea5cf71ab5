# SPDX-License-Identifier: Apache-2.0
"""What was computed on another machine is held to the references, node by node."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from qhyvit_onnx.replay import host_machine
from qhyvit_onnx.runtime import Options, Session
from tests.conftest import build_model

TOOLS = Path(__file__).resolve().parent.parent / "tools"
CONV = "Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]>"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import check_arm

    monkeypatch.setattr(check_arm, "Machine", type("Here", (), {"ARM": host_machine()}))
    yield check_arm
    monkeypatch.delitem(sys.modules, "check_arm", raising=False)


def run_here(*, spoil=False):
    """Return what stands in for the emulator: it runs the models on this machine."""

    def count(_emulator, _core, folder):
        with np.load(folder / "feeds.npz") as arrays:
            feed = dict(arrays)
        found = Session(folder / "shown.plain.onnx", Options(optimize=False)).run(feed)
        if spoil:
            name = next(name for name, array in found.items() if array.dtype == np.uint8)
            found[name] = found[name] ^ 1
        np.savez(folder / "shown.plain.npz", **found)
        return {"float": 200, "placed": 100, "full": 150, "shown.plain": 1}

    return count


@pytest.fixture
def net(tmp_path):
    rng = np.random.default_rng(0)
    w = (rng.normal(0, 1, (32, 32, 3, 3)) / 17).astype(np.float32)
    model = build_model(
        f"g (float[1, 32, 12, 12] x) => (float[1, 32, 12, 12] y) {{ a0 = {CONV} (x, w)"
        f" a = Relu (a0) y = {CONV} (a, w) }}",
        w=w,
    )
    onnx.save(model, tmp_path / "net.onnx")
    feeds = [{"x": rng.normal(0, 1, (1, 32, 12, 12)).astype(np.float32)} for _ in range(4)]
    return tmp_path / "net.onnx", feeds


@pytest.mark.parametrize("spoil", [False, True])
def test_a_code_that_differs_is_found(tool, net, monkeypatch, spoil):
    monkeypatch.setattr(tool, "count", run_here(spoil=spoil))
    row = tool.check(*net, "a76", Path("nowhere"))
    assert row["integer nodes"] >= 3
    assert (row["full / float"], row["placed / float"]) == (0.75, 0.5)
    assert (row["largest difference"] > 0) is spoil


@pytest.mark.parametrize("spoil", [False, True])
def test_the_command_fails_if_one_does(tool, net, monkeypatch, capsys, spoil):
    monkeypatch.setattr(tool, "count", run_here(spoil=spoil))
    monkeypatch.setattr(tool, "set_up", lambda emulator: None)
    monkeypatch.setattr(tool, "models", lambda zoo: [net])
    monkeypatch.setattr(sys, "argv", ["check_arm.py", "--cores", "a76"])
    if spoil:
        with pytest.raises(SystemExit, match=r"not bit for bit: net on a76"):
            tool.main()
    else:
        tool.main()
    assert "the bundled model only" in capsys.readouterr().out
