# SPDX-License-Identifier: Apache-2.0
"""Runs models on emulated cores and counts their instructions."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "arm"

TARGETS = {"a53": "arm64-base", "a76": "arm64", "i8mm": "arm64-i8mm"}
"""Emulated cores, each with the target that is for it."""


def set_up(emulator: Path) -> None:
    """Make the emulator in its folder, once; stop with what is missing when that fails."""
    setup = [HERE / "setup.sh", emulator, Path(sys.executable).with_name("pip")]
    if subprocess.run(setup, stdout=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit("the emulator could not be set up; see above")


def count(emulator: Path, cpu: str, folder: Path) -> dict[str, int]:
    """Return instructions of one run of every model in ``folder`` on an ARM core, by its name."""
    return _counted([emulator / "python", cpu, HERE / "guest.py", folder], cpu, {"COUNT": "1"})


def count_haswell(folder: Path) -> dict[str, int]:
    """Return the same on an x86-64 with AVX2, running this very Python and its onnxruntime."""
    tools = ("qemu-x86_64", "gcc")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        raise SystemExit(f"{missing[0]} is missing; on Debian: apt-get install qemu-user gcc")
    plugin = folder / "count.so"
    flags = ["-O2", "-shared", "-fPIC", "-DGETPGID=121"]
    subprocess.run(["gcc", *flags, "-o", plugin, HERE / "count.c"], check=True)
    command = ["qemu-x86_64", "-cpu", "Haswell", "-plugin", plugin, sys._base_executable]
    packages = Path(np.__file__).parents[1]
    return _counted([*command, HERE / "guest.py", folder], "haswell", {"PYTHONPATH": str(packages)})


def _counted(command: Sequence[str | Path], cpu: str, extra: Mapping[str, str]) -> dict[str, int]:
    environment = {**os.environ, **extra}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the emulated run failed on {cpu}:\n{done.stderr[-2000:]}")
    return instructions(done.stderr.splitlines())


def instructions(lines: Sequence[str]) -> dict[str, int]:
    """Return the difference of the two counters printed after each ``MODEL``, by its name."""
    found: dict[str, list[int]] = {}
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "MODEL":
            marks = found.setdefault(rest, [])
        elif word == "COUNT":
            marks.append(int(rest))
    return {name: last - first for name, (first, last) in found.items()}
