# SPDX-License-Identifier: Apache-2.0
"""One model quantized in one way on one draw of calibration samples, in a process of its own."""

import multiprocessing
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from _bench import Feed, best_arithmetic, quantize_static
from _cases import Case, cases

from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig, Effort, Extent, Verification
from qhyvit_onnx.metrics import Closeness, Comparison
from qhyvit_onnx.passes.reconstruct import Reconstruct
from qhyvit_onnx.pipeline import Step, Watcher, peak_megabytes
from qhyvit_onnx.recipes import Form, find_recipe
from qhyvit_onnx.runtime import Arithmetic, Arrays, Options, Session
from qhyvit_onnx.simulator import Simulation, simulate, simulation_of
from qhyvit_onnx.state import State

PEERS = {"ort-minmax": "MinMax", "ort-percentile": "Percentile"}
"""onnxruntime's own quantizer, by what it is called here and by its calibration method."""

BATCH = 250
SIMULATED = 1000
"""Test samples on which the simulation of an emitted model is run beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is measured; the fields are the keys of a row."""

    model: str
    recipe: str
    precision: str
    effort: str
    placement: str
    target: str
    samples: int
    draw: int
    views: int


@dataclass(frozen=True, slots=True)
class Folders:
    """Where models and data lie."""

    ocr: Path | None
    cifar: Path | None
    extra: tuple[Path, ...]


class Runs(Protocol):
    """A session, or something like it."""

    outputs: list[str]

    def run(self, feeds: Feed) -> Arrays:
        """Return outputs by name."""


def perform(trial: Trial, folders: Folders) -> dict[str, Any]:
    """Return the row of ``trial``, made in a process of its own: memory is counted from nothing."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (trial, folders))


def possible(trial: Trial) -> bool:
    """Tell whether the tool of ``trial`` knows its precision."""
    return trial.recipe not in PEERS or trial.precision in {"w8a8", "w4a8"}


def _measured(trial: Trial, folders: Folders) -> dict[str, Any]:
    found = (c for c in cases(folders.ocr, folders.cifar, folders.extra) if c.name == trial.model)
    case = next(found)
    if trial.recipe in PEERS:
        return asdict(trial) | _peer(trial, case)
    if find_recipe(trial.recipe).form is not Form.DEPLOYED:
        return asdict(trial) | _simulated(trial, case)
    return asdict(trial) | _emitted(trial, case)


def _config(trial: Trial) -> CompileConfig:
    return CompileConfig(
        recipe=trial.recipe,
        precision=trial.precision,
        effort=Effort(trial.effort) if trial.effort else None,
        placement=Extent(trial.placement),
        target=trial.target,
        calib_samples=trial.samples,
        seed=trial.draw,
        verification=Verification(rounds=0, replay=0, samples=1),
    )


class _Listener(Watcher):
    """Keeps a simulation of what is about to be emitted."""

    simulation: Simulation | None = None

    def finished(self, step: Step, state: State) -> None:
        """Take the state while its graph is still in float."""
        if step.name == Reconstruct.name:
            self.simulation = simulation_of(state)


def _emitted(trial: Trial, case: Case) -> dict[str, Any]:
    """Compile, run the file in onnxruntime, and beside it the simulation on some samples."""
    start, listener = time.perf_counter(), _Listener()
    calib = case.drawn(trial.samples, trial.draw)
    compiled = compile_model(case.model, calib, _config(trial), watcher=listener)
    costs = _costs(start)
    report = compiled.report
    session = Session(compiled.model, Options(arithmetic=Arithmetic(report.arithmetic)))
    both = compare(case, session, limit=SIMULATED)
    assert listener.simulation is not None
    apart = compare(case, listener.simulation, limit=SIMULATED)
    return (
        _row(trial, case, calib, session)
        | costs
        | {
            "form": "emitted",
            "int8 units": f"{report.int8_units}/{len(report.units)}",
            "simulation off by": _apart(apart, both),
        }
    )


def _simulated(trial: Trial, case: Case) -> dict[str, Any]:
    start, calib = time.perf_counter(), case.drawn(trial.samples, trial.draw)
    simulation = simulate(case.model, calib, _config(trial))
    costs = _costs(start)
    facts = simulation.facts
    return (
        _row(trial, case, calib, simulation)
        | costs
        | {
            "form": "simulation" if facts.undeployable else "simulation, deployable",
            "int8 units": f"{facts.int8_units}/{facts.units}",
            "simulation off by": None,
        }
    )


def _peer(trial: Trial, case: Case) -> dict[str, Any]:
    start, calib = time.perf_counter(), case.drawn(trial.samples, trial.draw)
    with tempfile.TemporaryDirectory() as folder:
        file = quantize_static(
            case.model,
            calib,
            Path(folder) / "static.onnx",
            method=PEERS[trial.recipe],
            weight_bits=int(trial.precision[1]),
        )
        costs = _costs(start)
        session = Session(file, Options(arithmetic=best_arithmetic(file)))
        return (
            _row(trial, case, calib, session)
            | costs
            | {
                "form": "emitted",
                "int8 units": "",
                "simulation off by": None,
            }
        )


def compare(
    case: Case, candidate: Runs, limit: int | None = None, views: int | None = None
) -> Closeness:
    """Return how close ``candidate`` is to the float model on test samples, at most ``limit``."""
    reference, comparison, taken = Session(case.model), Comparison(), 0
    for feed, labels in case.batches(BATCH) if views is None else case.views(views, BATCH):
        want, got = reference.run(feed), candidate.run(feed)
        name = reference.outputs[0]
        comparison.add(want[name], got[name], labels)
        taken += len(next(iter(feed.values())))
        if limit is not None and taken >= limit:
            break
    return comparison.result()


def _costs(start: float) -> dict[str, Any]:
    """Return seconds since ``start``, and megabytes at the worst moment."""
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 1), "peak_mb": round(peak_megabytes())}


def _row(trial: Trial, case: Case, calib: list[Feed], candidate: Runs) -> dict[str, Any]:
    """Return how close ``candidate`` is on test samples, and on those it was calibrated with."""
    item = compare(case, candidate)
    looked = trial.views > 1 and case.labels is not None
    more = compare(case, candidate, views=trial.views) if looked else item
    own = compare(replace(case, evaluation=calib, labels=None), candidate)
    return {
        "float top-1": item.top1_float,
        "top-1": item.top1_int8,
        "agreement": item.agreement,
        "sqnr_db": item.sqnr_db,
        "own_sqnr_db": own.sqnr_db,
        "float top-1 of views": more.top1_float,
        "top-1 of views": more.top1_int8,
    }


def _apart(simulated: Closeness, emitted: Closeness) -> float:
    """Return by how much the simulation's figure differs: points of top-1, or of agreement."""
    if simulated.top1_int8 is None or emitted.top1_int8 is None:
        return round(100 * (simulated.agreement - emitted.agreement), 3)
    return round(100 * (simulated.top1_int8 - emitted.top1_int8), 3)
