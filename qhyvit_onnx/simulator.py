# SPDX-License-Identifier: Apache-2.0
"""A quantized model that is never written: the float graph, rounded where a recipe rounds it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray

from qhyvit_onnx.compiler import load, open_data
from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.data import Source
from qhyvit_onnx.data.preprocess import Recipe as Preprocess
from qhyvit_onnx.effort import GET_TORCH, torch_is_installed
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.facts import GRIDS, PLACEMENT, UNITS, Grids
from qhyvit_onnx.passes._roundings import beyond_kernels, roundings, takes_integers
from qhyvit_onnx.passes._simulation import Key, Sites, sites_of
from qhyvit_onnx.passes.insert_qdq import InsertQdq
from qhyvit_onnx.pipeline import Step, Watcher, default_pipeline, run
from qhyvit_onnx.programs import opaque_runner, program_of
from qhyvit_onnx.runtime import Arrays, cpu_features
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import find_target
from qhyvit_onnx.units import Unit

if TYPE_CHECKING:
    from qhyvit_onnx.kernels.executor import Executor, Hook


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is simulated."""

    recipe: str
    precision: str
    target: str
    int8_units: int
    units: int
    undeployable: tuple[str, ...]
    """Tensors, and layers, whose grid no integer kernel takes."""
    steps: tuple[Step, ...]
    """The passes that decided on it."""

    @property
    def seconds(self) -> float:
        """How long these took."""
        return sum(step.seconds for step in self.steps)


class Simulation:
    """Runs like a session; rounds like the model that would be emitted, if it could be.

    Error:
        sums are taken in float32, in another order than an integer kernel's; where that tips a
        value over to the next code, what follows differs by as much as any rounding.
    """

    def __init__(self, executor: "Executor", hooks: "Mapping[Key, Hook]", facts: Facts) -> None:
        """Take the float network, and what is done to its tensors."""
        self.inputs, self.outputs = list(executor.program.inputs), list(executor.program.outputs)
        self.facts = facts
        self._executor, self._hooks = executor, hooks

    def run(
        self, feeds: Mapping[str, NDArray[np.generic]], wanted: Sequence[str] | None = None
    ) -> Arrays:
        """Return outputs by name; ModelError when the model cannot run on ``feeds``."""
        from qhyvit_onnx.kernels.quantizers import run_rounded  # noqa: PLC0415 - torch is optional

        names = tuple(self.outputs if wanted is None else wanted)
        return run_rounded(self._executor, feeds, names, self._hooks)


def simulate(
    model: str | PathLike[str] | onnx.ModelProto,
    calibration: Source = None,
    config: CompileConfig | None = None,
    *,
    preprocess: str | Preprocess | None = None,
    watcher: Watcher | None = None,
) -> Simulation:
    """Return ``model`` as ``config`` would quantize it, without writing it: for any recipe.

    Takes what ``compile`` takes, and decides by the same passes: all before ``insert-qdq``.

    Error:
        CompileError and its kinds (``errors.py``); ConfigError without torch.
    """
    if not torch_is_installed():
        raise ConfigError("a simulation needs torch", hint=GET_TORCH)
    config = config or CompileConfig()
    source = load(model)
    target = find_target(config.target, cpu_features())
    calibrated, held_back = open_data(source, calibration, config, preprocess)
    watcher = watcher or Watcher()
    watcher.opened(calibrated, held_back, target)
    state = State(source, config, calibrated, held_back)
    passes = default_pipeline(config, target)
    deciding = tuple(takewhile(lambda item: not isinstance(item, InsertQdq), passes))
    return simulation_of(state, run(deciding, state, watcher))


def simulation_of(state: State, steps: Sequence[Step] = ()) -> Simulation:
    """Return the simulation of what ``insert-qdq`` would write next, after ``steps``.

    Takes the state between ``reconstruct`` and ``insert-qdq``, and nothing of what becomes of it
    later.
    """
    from qhyvit_onnx.kernels.devices import device_of  # noqa: PLC0415 - torch is optional
    from qhyvit_onnx.kernels.executor import Executor  # noqa: PLC0415 - torch is optional

    config, placement = state.config, state.get(PLACEMENT)
    program = program_of(state.model())
    executor = Executor(program, device=device_of(config), opaque=opaque_runner(program))
    facts = Facts(
        recipe=config.recipe,
        precision=config.precision,
        target=find_target(config.target, cpu_features()).name,
        int8_units=len(placement.int8),
        units=len(state.get(UNITS)),
        undeployable=beyond_kernels(state.get(GRIDS), placement),
        steps=tuple(steps),
    )
    return Simulation(executor, hooks_of(state), facts)


def hooks_of(state: State) -> "dict[Key, Hook]":
    """Return what rounds the tensors of the float model, and stands in for weights and biases."""
    from qhyvit_onnx.kernels.quantizers import constant, quantizer  # noqa: PLC0415 - torch is optional

    grids, placement, units = state.get(GRIDS), state.get(PLACEMENT), state.get(UNITS)
    sites, named = sites_of(state.graph, units, placement), {unit.name: unit for unit in units}
    chosen = [named[name] for name in placement.int8]
    rounded = roundings(state.graph, sites.activations, chosen, grids)
    hooks: dict[Key, Hook] = {place: quantizer(grid) for place, grid in rounded.items()}
    for place, name in sites.weights.items():
        hooks[place] = constant(grids.weight_of(named[name]))
    for place, name in sites.biases.items():
        hooks[place] = constant(_bias(named[name], grids, sites))
    return hooks


def _bias(unit: Unit, grids: Grids, sites: Sites) -> NDArray[np.float32]:
    """Return the bias of a layer as its kernel adds it: in int32 steps ``s_x s_w``, or in float."""
    bias = grids.bias_of(unit)
    if unit.name not in sites.rounded_biases or not takes_integers(grids, unit):
        return np.asarray(bias, np.float32)
    owner = sites.owners[str(unit.inputs[0].name)]
    step = np.float32(grids.activations[owner].scale) * grids.weights[unit.name].scale
    rounded: NDArray[np.float64] = np.rint(bias.astype(np.float64) / step) * step
    return rounded.astype(np.float32)
