# SPDX-License-Identifier: Apache-2.0
"""Runs the compiler as far as knowing goes, and writes down what it knows; emits nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from qhyvit_onnx.config import CompileConfig, Scope
from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.data import Feeds, Source, open_feeds
from qhyvit_onnx.data.input_spec import resolve_shapes
from qhyvit_onnx.data.preprocess import Recipe
from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.facts import BRIDGES, LAYOUT, REGIONS
from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.inspection.bridges import bridge_views
from qhyvit_onnx.inspection.contract import is_quantized, load_any, parameters, port
from qhyvit_onnx.inspection.families import families_of
from qhyvit_onnx.inspection.map import Map
from qhyvit_onnx.inspection.norms import Norm, find_norms, norm_views
from qhyvit_onnx.inspection.records import SCHEMA, Inspection, LayoutView, PassView
from qhyvit_onnx.inspection.regions import region_views
from qhyvit_onnx.inspection.trouble import observed
from qhyvit_onnx.inspection.units import unit_views
from qhyvit_onnx.layout.channels import channel_axes
from qhyvit_onnx.layout.roles import RoleKind
from qhyvit_onnx.model_io import input_specs
from qhyvit_onnx.passes._base import Pass
from qhyvit_onnx.passes.detect_bridges import DetectBridges
from qhyvit_onnx.passes.fold_norms import FoldNorms
from qhyvit_onnx.passes.normalise import Normalise
from qhyvit_onnx.passes.search_scales import SearchScales
from qhyvit_onnx.pipeline import Step, Watcher, default_pipeline, run
from qhyvit_onnx.state import State
from qhyvit_onnx.work import shapes_at


def inspect_model(
    path: Path,
    target: Target,
    config: CompileConfig | None = None,
    calibration: Source = None,
    *,
    preprocess: str | Recipe | None = None,
    watcher: Watcher | None = None,
) -> Inspection:
    """Look at the model at ``path`` as ``compile`` would see it; nothing is written.

    ``calibration`` is what ``open_feeds`` takes; None looks without data. ``config`` gives shapes,
    samples and seed.

    Error:
        As ``compile_model``, except that a quantized model is refused only with data.
    """
    config, watcher = config or CompileConfig(), watcher or Watcher()
    model = load_any(path)
    resolve_shapes(input_specs(model), config.input_shapes)
    found = _contract(path, model, target)
    if found.quantized:
        if calibration is not None:
            raise ModelError(f"{path} is quantized already", hint="calibrate the float model")
        return replace(found, families=families_of(import_graph(model)))
    feeds, last = Feeds.of([]), DetectBridges.name
    if calibration is not None:
        feeds, last = _feeds(model, calibration, config, preprocess), SearchScales.name
        watcher.opened(feeds, None, target)
    look = _Look(found, watcher, target)
    steps = run(_passes(config, target, last), State(model, config, feeds), look)
    return replace(look.found, passes=tuple(map(_told, steps)))


def _contract(path: Path, model: onnx.ModelProto, target: Target) -> Inspection:
    """Return what can be said without running any pass."""
    return Inspection(
        schema_version=SCHEMA,
        path=str(path),
        file_bytes=path.stat().st_size,
        ir_version=model.ir_version,
        opsets={item.domain or "ai.onnx": item.version for item in model.opset_import},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=tuple(map(port, model.graph.input)),
        outputs=tuple(map(port, model.graph.output)),
        parameters=parameters(model),
        nodes=len(model.graph.node),
        nodes_normalised=len(model.graph.node),
        quantized=is_quantized(model),
        families={},
        target=target.name,
    )


def _feeds(
    model: onnx.ModelProto,
    calibration: Source,
    config: CompileConfig,
    preprocess: str | Recipe | None,
) -> Feeds:
    return open_feeds(
        calibration,
        input_specs(model),
        samples=config.calib_samples,
        seed=config.seed,
        preprocess=preprocess,
        shapes=config.input_shapes,
    )


def _passes(config: CompileConfig, target: Target, last: str) -> Sequence[Pass]:
    """Return the passes of ``compile`` up to the one called ``last``."""
    passes = default_pipeline(config, target)
    return passes[: [item.name for item in passes].index(last) + 1]


def _told(step: Step) -> PassView:
    return PassView(step.name, step.outcome.note, dict(step.outcome.misses))


class _Look(Watcher):
    """Takes notes when a pass has ended, before the next one edits the graph further."""

    def __init__(self, found: Inspection, watcher: Watcher, target: Target) -> None:
        self.found = found
        self._watcher, self._target = watcher, target
        self._norms: list[Norm] = []
        self._backward: Any = None
        self._regions: dict[str, int] = {}
        self._channels: dict[str, int] = {}

    def planned(self, passes: Sequence[Pass]) -> None:
        self._watcher.planned(passes)

    def started(self, pass_: Pass) -> None:
        self._watcher.started(pass_)

    def progressed(self, done: int, total: int) -> None:
        self._watcher.progressed(done, total)

    def finished(self, step: Step, state: State) -> None:
        self._watcher.finished(step, state)
        if step.name == Normalise.name:
            self._see_ops(state)
        elif step.name == FoldNorms.name:
            self._see_norms(state, step.outcome.misses)
        elif step.name == DetectBridges.name:
            self._see_regions(state)
        elif step.name == SearchScales.name:
            seen = observed(state, self._regions, self._channels)
            self.found = replace(self.found, observed=seen)

    def _see_ops(self, state: State) -> None:
        graph = state.graph
        self.found = replace(
            self.found, families=families_of(graph), nodes_normalised=len(graph.nodes)
        )
        self._norms = find_norms(graph)
        aside = State(state.source, state.config, Feeds.of([]), graph=graph.copy())
        FoldNorms(Scope.OFF).run(aside)
        self._backward = aside.graph

    def _see_norms(self, state: State, misses: Mapping[str, int]) -> None:
        norms = norm_views(self._norms, self._backward, state.graph, misses)
        self._backward = None
        self.found = replace(self.found, norms=norms)

    def _see_regions(self, state: State) -> None:
        graph, layout = state.graph, state.get(LAYOUT)
        self._channels = channel_axes(graph, layout.known, layout.moves)
        shapes = shapes_at(graph, _sizes(state))
        seen = Map.of(graph, state.get(REGIONS), shapes, self._channels)
        self._regions = seen.region_of_tensors()
        self.found = replace(
            self.found,
            units=unit_views(graph, self._target, shapes),
            layout=_layout_view(state),
            macs=seen.work(graph.nodes),
            regions=region_views(seen),
            bridges=bridge_views(seen, state.get(BRIDGES)),
            flows=seen.flows(),
        )


def _sizes(state: State) -> dict[str, tuple[int | None, ...]]:
    """Return how large the inputs are: as in the first sample, else as the user says."""
    first = next(iter(state.calibration), None)
    if first is not None:
        return {name: array.shape for name, array in first.items()}
    specs = resolve_shapes(input_specs(state.source), state.config.input_shapes)
    return {spec.name: spec.shape for spec in specs}


def _layout_view(state: State) -> LayoutView:
    layout = state.get(LAYOUT)
    roles = Counter(chain.channel.kind for chain in layout.chains)
    return LayoutView(
        chains=len(layout.chains),
        permutations=sum(chain.map.is_permutation for chain in layout.chains),
        roles={str(kind): roles[kind] for kind in RoleKind if roles[kind]},
        unknown=len(layout.unknown),
    )
