# SPDX-License-Identifier: Apache-2.0
"""What the counting plugin prints becomes instructions a run, and ratios their geometric means."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def arm(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import bench_arm

    yield bench_arm
    monkeypatch.delitem(sys.modules, "bench_arm", raising=False)


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import _emulated

    yield _emulated
    monkeypatch.delitem(sys.modules, "_emulated", raising=False)


def test_a_run_is_what_lies_between_its_marks(emulated):
    lines = [
        "MODEL float",
        "COUNT 100",
        "COUNT 350",
        "noise",
        "MODEL ours",
        "COUNT 400",
        "COUNT 500",
    ]
    assert emulated.instructions(lines) == {"float": 250, "ours": 100}


def test_a_run_that_was_cut_short_is_an_error(emulated):
    with pytest.raises(ValueError, match="not enough values"):
        emulated.instructions(["MODEL float", "COUNT 100"])


def test_means_are_geometric_and_by_core(arm):
    rows = [
        {
            "core": core,
            "ours / float": ours,
            "ours, full / float": 1.0,
            "quantize_static / float": 1.0,
        }
        for core, ours in [("a53", 0.5), ("a76", 0.2), ("a53", 2.0), ("a76", 0.8)]
    ]
    assert [(row["core"], row["ours / float"]) for row in arm.means(rows)] == [
        ("a53", 1.0),
        ("a76", 0.4),
    ]


def test_equal_outputs_are_called_so(arm):
    here = {"y": np.float32([1.0, -4.0])}
    assert arm.difference(here, {"y": np.float32([1.0, -4.0])}) == "equal"
    assert arm.difference(here, {"y": np.float32([1.5, -4.0])}) == "1.2e-01"


def test_the_set_up_clears_no_folder_that_is_not_its_own(tmp_path):
    import shutil
    import subprocess

    tools, mine = tmp_path / "bin", tmp_path / "mine"
    tools.mkdir()
    mine.mkdir()
    (mine / "letter.txt").write_text("keep me")
    for name in ("bash", "dirname", "realpath", "ls"):
        (tools / name).symlink_to(shutil.which(name))
    for name in ("qemu-aarch64", "gcc", "apt-get", "dpkg-deb"):
        (tools / name).symlink_to(shutil.which("true"))
    done = subprocess.run(
        [shutil.which("bash"), TOOLS / "arm" / "setup.sh", mine],
        env={"PATH": str(tools)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"{mine} is not empty and not an emulator: name another folder\n"
    assert (mine / "letter.txt").read_text() == "keep me"


def test_the_set_up_names_what_is_missing(tmp_path):
    import shutil
    import subprocess

    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "realpath"):
        (tools / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        [shutil.which("bash"), TOOLS / "arm" / "setup.sh", tmp_path / "arm"],
        env={"PATH": str(tools)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "qemu-aarch64 is missing; on Debian: apt-get install qemu-user gcc\n"
    assert not (tmp_path / "arm").exists()


def test_a_prediction_is_held_to_what_was_found_in_its_own_unit(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from _bench import foretold

    said = SimpleNamespace(unit="instructions", in_float=90.0, full=60.0, placed=30.0)
    compiled = SimpleNamespace(report=SimpleNamespace(prediction=said))
    assert list(foretold(compiled, "instructions", 100.0, 20.0).values()) == ["0.90", "1.50"]
    assert list(foretold(compiled, "ns", 100.0, 20.0).values()) == ["-", "-"]
