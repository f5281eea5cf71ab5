# SPDX-License-Identifier: Apache-2.0
"""Everything that learning may change in a network, handed out block by block."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.facts import Grids
from qhyvit_onnx.graph import value
from qhyvit_onnx.kernels.executor import Executor, Hook
from qhyvit_onnx.kernels.passing import Passing
from qhyvit_onnx.kernels.reconstruction import Channels, Learnables
from qhyvit_onnx.kernels.rounding import BiasShift, LearnedScale, SoftRounding, Steps
from qhyvit_onnx.passes._blocks import Span
from qhyvit_onnx.passes._simulation import Key, Sites
from qhyvit_onnx.units import CONVOLUTIONS, Kind, Unit


@dataclass(frozen=True, slots=True)
class Network:
    """What is learned on: the float network, and where and how it is rounded."""

    executor: Executor
    passing: Passing
    units: Mapping[str, Unit]
    sites: Sites
    grids: Grids
    frozen: frozenset[str]
    """Tensors whose scale must stay."""
    gains: Mapping[str, NDArray[np.float32]]
    """What a squared error costs, by tensor and channel; tensors that are missing count plainly."""
    axes: Mapping[str, int]
    """Where the channels of a tensor lie."""
    device: str = "cpu"


class Learned:
    """The roundings, scales and biases of a network; each is made when its block is met."""

    def __init__(self, network: Network) -> None:
        """Nothing is learned yet."""
        self._network = network
        steps = network.executor.program.steps
        self._places = {step.name: i for i, step in enumerate(steps)}
        self._born = {name: i for i, step in enumerate(steps) for name in step.outputs}
        self._roundings: dict[str, SoftRounding] = {}
        self._scales: dict[str, LearnedScale] = {}
        self._biases: dict[str, BiasShift] = {}

    def inside(self, span: Span) -> Learnables:
        """Return what may change in one block; scales met in an earlier block stay as they are."""
        sites = self._network.sites
        hooks: dict[Key, Hook] = {}
        roundings, biases, scales = {}, {}, {}
        for place, name in sites.weights.items():
            if self._within(place, span):
                hooks[place] = roundings[name] = self._rounding(name)
        for place, name in sites.biases.items():
            if self._within(place, span):
                hooks[place] = biases[name] = self._bias(name)
        for key, owner in sites.activations.items():
            if self._within(key, span):
                if owner not in self._scales:
                    scales[owner] = self._scale(owner)
                hooks[key] = self._scale(owner)
        free = {name: item for name, item in scales.items() if name not in self._network.frozen}
        return Learnables(hooks, roundings, free, biases, self._outputs(biases))

    def everything(self) -> Learnables:
        """Return what may change when all blocks are learned: scales and biases."""
        sites = self._network.sites
        hooks: dict[Key, Hook] = {place: self._roundings[n] for place, n in sites.weights.items()}
        hooks |= {place: self._biases[name] for place, name in sites.biases.items()}
        hooks |= {key: self._scales[owner] for key, owner in sites.activations.items()}
        free = {n: item for n, item in self._scales.items() if n not in self._network.frozen}
        return Learnables(hooks, {}, free, self._biases, self._outputs(self._biases))

    def grids(self) -> Grids:
        """Return the grids of the network with everything learned so far."""
        grids = self._network.grids
        owners = self._network.sites.owners
        activations = {
            name: replace(grid, scale=self._scales[owner].scale())
            if owner in self._scales
            else grid
            for name, grid in grids.activations.items()
            if (owner := owners.get(name, name))
        }
        codes = {name: item.codes() for name, item in self._roundings.items()}
        biases = {name: item.bias() for name, item in self._biases.items()}
        return replace(
            grids,
            activations=activations,
            codes={**grids.codes, **codes},
            biases={**grids.biases, **biases},
        )

    def _within(self, key: Key, span: Span) -> bool:
        place = self._places[key[0]] if isinstance(key, tuple) else self._born[key]
        return span.first <= place <= span.last

    def _rounding(self, name: str) -> SoftRounding:
        unit, grids = self._network.units[name], self._network.grids
        weight = np.asarray(value(unit.weight), np.float32)
        self._roundings[name] = SoftRounding(
            weight, grids.weights[name], grids.codes_of(unit), self._network.device
        )
        return self._roundings[name]

    def _bias(self, name: str) -> BiasShift:
        bias = self._network.grids.bias_of(self._network.units[name])
        given = np.asarray(value(self._network.units[name].bias), np.float32)
        shift, device = np.asarray(bias) - given, self._network.device
        self._biases[name] = BiasShift(given, shift, self._bias_unit(name), device)
        return self._biases[name]

    def _bias_unit(self, name: str) -> Steps | None:
        """Return what gives the steps of an int32 bias: those of the input times the weight's."""
        network = self._network
        if name not in network.sites.rounded_biases:
            return None
        owner = network.sites.owners[network.units[name].inputs[0].name]
        return self._scale(owner).times(network.grids.weights[name].scale)

    def _scale(self, owner: str) -> LearnedScale:
        if owner not in self._scales:
            grid = self._network.grids.activations[owner]
            self._scales[owner] = LearnedScale(grid, self._network.device)
        return self._scales[owner]

    def _outputs(self, biases: Mapping[str, BiasShift]) -> dict[str, Channels]:
        """Return what each bias is added to, in the order that it is computed."""
        found = {name: summed(self._network.units[name]) for name in biases}
        return dict(sorted(found.items(), key=lambda item: self._born[item[1].tensor]))


def summed(unit: Unit) -> Channels:
    """Return the channels that the bias of a layer has been added to."""
    node = unit.nodes[1] if unit.kind is Kind.MATMUL else unit.node
    return Channels(str(node.outputs[0].name), 1 if unit.kind in CONVOLUTIONS else -1)
