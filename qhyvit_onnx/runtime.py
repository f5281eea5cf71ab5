# SPDX-License-Identifier: Apache-2.0
"""onnxruntime, reached through this module only: sessions, options, optimized graphs, CPU features.

Kept in one place so that thread counts and providers are set once, and so that sessions can be
moved into a child process without touching the passes.
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from qhyvit_onnx.errors import ModelError

_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : ")
LONGEST = 300
"""Characters of an onnxruntime message that are passed on."""

Arrays = dict[str, NDArray[np.generic]]


class View(StrEnum):
    """Whose fusion decisions a session takes."""

    HOST = "host"
    """This CPU, as any user's session would."""
    ARM = "arm"
    """What an ARM64 build decides, on any host (session entry ``session.qdqisint8allowed``)."""


class Arithmetic(StrEnum):
    """How integer products are summed."""

    STOCK = "stock"
    """As onnxruntime does by default; AVX2 without VNNI saturates pairs of products."""
    EXACT = "exact"
    """Never saturating: the numbers of ARM and of VNNI, on any host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a session is opened."""

    threads: int = 0
    """0: as many as there are cores."""
    view: View = View.HOST
    arithmetic: Arithmetic = Arithmetic.STOCK
    fuse_qdq: bool = True
    """False: Q and DQ stay as they are and everything between them runs in float."""
    optimize: bool = True
    """False: the graph runs node by node as it is written, for one that was optimized already."""
    arena: bool = True
    """False: memory is given back after every run, for when many sessions are open at a time."""


class Session:
    """One loaded model on the CPU provider."""

    def __init__(self, model: onnx.ModelProto | bytes | Path, options: Options = Options()) -> None:
        """Load ``model``; ModelError when onnxruntime refuses it."""
        self._session = _open(model, _session_options(options))
        self.inputs = [item.name for item in self._session.get_inputs()]
        self.outputs = [item.name for item in self._session.get_outputs()]
        self.types = {item.name: str(item.type) for item in self._session.get_outputs()}

    def run(
        self, feeds: Mapping[str, NDArray[np.generic]], wanted: Sequence[str] | None = None
    ) -> Arrays:
        """Return outputs by name; ModelError when the model cannot run on ``feeds``."""
        names = list(wanted) if wanted is not None else self.outputs
        if not names:  # onnxruntime takes an empty list for all outputs
            return {}
        try:
            values = self._session.run(names, dict(feeds))
        except Exception as error:
            raise ModelError(f"onnxruntime cannot run the model: {_first_line(error)}") from error
        return dict(zip(names, values, strict=True))


def optimized(
    model: onnx.ModelProto, options: Options = Options(), *, weights: bool = False
) -> onnx.ModelProto:
    """Return the graph that onnxruntime really runs, without blocked layouts of float convolutions.

    With ``weights`` it holds its large initializers and can be run; without, it can be read only.

    Source:
        the file written to ``SessionOptions.optimized_model_filepath`` at ORT_ENABLE_ALL.
    """
    chosen = _session_options(options)
    chosen.add_session_config_entry("session.optimized_model_external_initializers_file_name", "w")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        chosen.optimized_model_filepath = str(path)
        _open(model, chosen, disabled=["NchwcTransformer"])
        return onnx.load(path, load_external_data=weights)


def symbolic_shapes(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Return the tensor types that onnxruntime's own symbolic inference finds; none if it fails.

    Dims are numbers or names; names with operators in them are expressions, best taken as names.
    The tool imports torch where it can, and when it gives up half way it leaves a file in the
    current folder: so it gets a process and a folder of its own, and that file, if any, is read.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        onnx.save(model, path / "model.onnx")
        command = [sys.executable, "-m", "onnxruntime.tools.symbolic_shape_infer"]
        command += ["--input", "model.onnx", "--output", "found.onnx"]
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)
        written = [path / name for name in ("found.onnx", "sym_shape_infer_temp.onnx")]
        found = next((file for file in written if file.exists()), None)
        if found is None:
            return {}
        infos = onnx.load(found, load_external_data=False).graph.value_info
    return {
        info.name: info.type
        for info in infos
        if info.type.tensor_type.HasField("shape") and info.type.tensor_type.elem_type
    }


@dataclass(frozen=True, slots=True)
class OrtFile:
    """A model in onnxruntime's own format."""

    model: bytes
    operators: str
    """Operators and types that a reduced build needs to run it, as its build script takes them."""


def ort_file(model: onnx.ModelProto, *, arm: bool) -> OrtFile:
    """Return ``model`` optimized for one platform and saved in onnxruntime's own format.

    Made by onnxruntime's converter, in a process and a folder of its own.

    Error:
        ModelError when the converter refuses the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        onnx.save(model, path / "model.onnx")
        command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", "."]
        command += ["--optimization_style", "Fixed", "--enable_type_reduction"]
        command += ["--target_platform", "arm" if arm else "amd64"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        written = path / "model.ort"
        if done.returncode or not written.exists():
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ModelError(f"onnxruntime cannot convert the model: {last[:LONGEST]}")
        lines = (path / "required_operators_and_types.config").read_text().splitlines()
        kept = [f"{line}\n" for line in lines if not line.startswith("#")]  # "#": where it was made
        return OrtFile(written.read_bytes(), "".join(kept))


def _session_options(options: Options) -> ort.SessionOptions:
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = options.threads or cores()
    chosen.inter_op_num_threads = 1
    chosen.enable_cpu_mem_arena = options.arena
    chosen.log_severity_level = 4
    levels = ort.GraphOptimizationLevel
    chosen.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if options.optimize else levels.ORT_DISABLE_ALL
    )
    if not options.fuse_qdq:
        chosen.add_session_config_entry("session.disable_quant_qdq", "1")
    if options.view is View.ARM:
        chosen.add_session_config_entry("session.qdqisint8allowed", "1")
    if options.arithmetic is Arithmetic.EXACT:
        chosen.add_session_config_entry("session.x64quantprecision", "1")
    return chosen


def _open(
    model: onnx.ModelProto | bytes | Path, options: ort.SessionOptions, disabled: Sequence[str] = ()
) -> ort.InferenceSession:
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    try:
        return ort.InferenceSession(
            str(source) if isinstance(source, Path) else source,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(disabled) or None,
        )
    except Exception as error:
        raise ModelError(f"onnxruntime cannot load the model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _CODE.sub("", lines[0])[:LONGEST]


def cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def cpu_features() -> frozenset[str]:
    """Return the CPU's feature flags in Linux spelling; without /proc/cpuinfo, the least it has."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset({"asimd", "asimddp"} if "arm" in platform.machine().lower() else {"sse2"})
    lines = (line for line in text.splitlines() if line.lower().startswith(("flags", "features")))
    return frozenset(word for line in lines for word in line.partition(":")[2].split())


def version() -> str:
    """Return the version of onnxruntime."""
    return str(ort.__version__)


Timed: TypeAlias = tuple[Session, Mapping[str, NDArray[np.generic]]]
"""A session, and what it is run on."""


def paired_times(
    first: Timed, second: Timed, *, rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> tuple[list[float], list[float]]:  # fmt: skip
    """Time two sessions in turn, so that drift hits both; return the seconds of each run.

    Of process CPU time, or by another ``clock``: with more threads than one, of elapsed time.
    """
    spent: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 1):
        for (session, feed), seconds in zip((first, second), spent, strict=True):
            start = clock()
            session.run(feed)
            if index:  # the first round warms caches up
                seconds.append(clock() - start)
    return spent
