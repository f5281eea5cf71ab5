# SPDX-License-Identifier: Apache-2.0
"""The whole compilation, from a model and data to a quantized model and its report."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qhyvit_onnx import __version__
from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.data import Feeds, Source, open_feeds
from qhyvit_onnx.data.preprocess import Recipe
from qhyvit_onnx.errors import ModelError, PassError
from qhyvit_onnx.explain import LEFT_FLOAT
from qhyvit_onnx.facts import EMITTED, INTERFACE, PLACEMENT
from qhyvit_onnx.interface import KEY, Pixels
from qhyvit_onnx.model_io import check_model, input_specs, load_model
from qhyvit_onnx.passes.measure import Measure
from qhyvit_onnx.pipeline import Watcher, default_pipeline
from qhyvit_onnx.placements import Made, Parts, is_outrun
from qhyvit_onnx.recipes import Form, find_recipe, undeployable
from qhyvit_onnx.report import Report, make_report
from qhyvit_onnx.runtime import Arithmetic, Options, OrtFile, Session, cpu_features, ort_file
from qhyvit_onnx.state import State
from qhyvit_onnx.sweep import Bound, sweep
from qhyvit_onnx.targets import find_target


@dataclass(frozen=True, slots=True)
class Compiled:
    """The quantized model, and what was done to get it."""

    model: onnx.ModelProto
    report: Report
    ort: OrtFile | None = None
    """With ``emit_ort``: the model in onnxruntime's own format."""


def compile_model(
    model: str | PathLike[str] | onnx.ModelProto,
    calibration: Source = None,
    config: CompileConfig | None = None,
    *,
    preprocess: str | Recipe | None = None,
    watcher: Watcher | None = None,
    bound: Bound | None = None,
) -> Compiled:
    """Return ``model`` quantized to run on onnxruntime's integer kernels, and the report.

    ``calibration`` is whatever ``open_feeds`` takes: a folder of images, ``.npy`` / ``.npz``, an
    iterable of ``{input name: array}``, an onnxruntime CalibrationDataReader; None takes a bundled
    set of natural images, for a first look only. With a ``bound`` the fastest placement that
    holds it is emitted. With target ``auto`` float is emitted where int8 is measured to be slower:
    only there does what is emitted hang on a measurement. Nothing is written to disk.

    Error:
        CompileError and its kinds (``errors.py``); the input is never changed.
    """
    config = config or CompileConfig()
    recipe = find_recipe(config.recipe)
    if recipe.form is Form.SIMULATED:
        raise undeployable(recipe)
    source = load(model)
    target = find_target(config.target, cpu_features())
    state = _begun(source, calibration, config, preprocess)
    watcher = watcher or Watcher()
    watcher.opened(state.calibration, state.held_back, target)
    held = (bound.max_drop, bound.open(source, config, preprocess)) if bound else None
    made = _made(state, target, held, watcher)
    emitted = made.state.get(EMITTED)
    _stamp(emitted, made.state, source, target.name)
    ort = _ort_file(emitted, target, made.state) if config.emit_ort else None
    return Compiled(emitted, make_report(made, target), ort)


def _begun(
    source: onnx.ModelProto,
    calibration: Source,
    config: CompileConfig,
    preprocess: str | Recipe | None,
) -> State:
    """Return the compilation before its first pass."""
    calibrated, held_back = open_data(source, calibration, config, preprocess)
    if not config.embed_preprocess:
        return State(source, config, calibrated, held_back)
    pixels = Pixels.of(input_specs(source), preprocess)
    held = held_back.mapped(pixels.pixels_in) if held_back else None
    model, samples = pixels.embedded(source), calibrated.mapped(pixels.pixels_in)
    return State(model, config, samples, held, pixels)


def _made(state: State, target: Target, held: tuple[float, Feeds] | None, watcher: Watcher) -> Made:
    """Run all passes; with a bound to be ``held``, by the drop and on the samples it names."""
    parts = Parts.of(default_pipeline(state.config, target))
    if held is None:
        made = parts.once(state, watcher)
    else:
        (max_drop, samples), pixels = held, state.pixels
        measure = Measure(target, samples.mapped(pixels.pixels_in) if pixels else samples)
        made = sweep(parts, state, measure, max_drop, watcher)
    return parts.in_float(state, made, watcher) if is_outrun(made, state.config) else made


def _ort_file(model: onnx.ModelProto, target: Target, state: State) -> OrtFile:
    """Return ``model`` in onnxruntime's own format, checked to compute the same on one sample."""
    found = ort_file(model, arm=target.is_arm)
    options = Options(arithmetic=Arithmetic.EXACT)
    sample = state.get(INTERFACE).encode(next(iter(state.calibration)))
    want, got = Session(model, options).run(sample), Session(found.model, options).run(sample)
    apart = [name for name in want if not np.allclose(want[name], got[name], rtol=1e-3, atol=1e-5)]
    if apart:
        raise PassError(f"the .ort file computes another {apart[0]} than the model it was made of")
    return found


def load(model: str | PathLike[str] | onnx.ModelProto) -> onnx.ModelProto:
    """Return the model of a file, or the given one; ModelError when it is not sound."""
    if isinstance(model, onnx.ModelProto):
        check_model(model)
        return model
    return load_model(Path(model))


def open_data(
    source: onnx.ModelProto,
    calibration: Source,
    config: CompileConfig,
    preprocess: str | Recipe | None,
) -> tuple[Feeds, Feeds | None]:
    """Return the calibration samples, and what the data holds beyond them to compare on."""
    extra = config.verification.samples
    feeds = open_feeds(
        calibration,
        input_specs(source),
        samples=config.calib_samples + extra,
        seed=config.seed,
        preprocess=preprocess,
        shapes=config.input_shapes,
    )
    return feeds.split(config.calib_samples)


def _stamp(model: onnx.ModelProto, state: State, source: onnx.ModelProto, target: str) -> None:
    """Write provenance into the metadata: no times, no paths, so equal inputs give equal bytes."""
    digest = hashlib.sha256(source.SerializeToString(deterministic=True)).hexdigest()
    config, origin = state.config, state.calibration.origin
    settings: dict[str, Any] = asdict(
        replace(config, input_shapes=dict(config.input_shapes), bits=dict(config.bits))
    )
    entries = {
        "qhyvit_onnx.version": __version__,
        "qhyvit_onnx.target": target,
        "qhyvit_onnx.config": json.dumps(settings, sort_keys=True),
        "qhyvit_onnx.source_sha256": digest,
        "qhyvit_onnx.calibration": f"{origin.kind}, {origin.taken} samples",
        "qhyvit_onnx.deployable": str(origin.deployable),
        "qhyvit_onnx.calibration_sha256": origin.sha256,
        KEY: state.get(INTERFACE).metadata(),
        LEFT_FLOAT: json.dumps(dict(state.get(PLACEMENT).reasons), sort_keys=True),
    }
    known = {item.key for item in model.metadata_props}
    if clash := sorted(known & set(entries)):
        raise ModelError(
            f"the model was already compiled: metadata {clash[0]}", hint="give the float model"
        )
    for key, text in entries.items():
        model.metadata_props.add(key=key, value=text)
