# SPDX-License-Identifier: Apache-2.0
"""Bridges as one unit: scales inside, by what leaves the bridge with every layer in it rounded."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from qhyvit_onnx.facts import BRIDGES, EVIDENCE, FLOAT, RANGES, Bridge, Grids
from qhyvit_onnx.graph import Graph, is_constant
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.passes._board import Board
from qhyvit_onnx.passes._searching.descent import Cost, descend
from qhyvit_onnx.passes._simulation import Key, Sites, sites_of
from qhyvit_onnx.programs import opaque_runner, program_of
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import Target
from qhyvit_onnx.units import Unit

if TYPE_CHECKING:
    from qhyvit_onnx.kernels.executor import Hook
    from qhyvit_onnx.kernels.segment import Segment

SAMPLES = 8
"""Calibration samples run through a bridge: half of them lead, the others judge."""


@dataclass(frozen=True, slots=True)
class _Inside:
    """Places inside a bridge, with what is rounded there."""

    activations: Mapping[Key, str]
    weights: Mapping[tuple[str, int], str]
    free: tuple[str, ...]
    """Tensors whose grid may change: nothing outside of the bridge reads it."""


def search_bridges(
    state: State, units: Iterable[Unit], grids: Grids, target: Target, fixed: Iterable[str]
) -> tuple[dict[str, Grid], int]:
    """Return the grids of all tensors, some of them changed, and how many bridges were improved.

    Weights stay as they are in ``grids``. A bridge without a gradient at its outputs is left as it
    is. ``fixed``: tensors whose grid others rely on.
    """
    units, gains = list(units), state.get(EVIDENCE).gains
    bridges = [bridge for bridge in state.get(BRIDGES) if any(n in gains for n in bridge.outputs)]
    if not bridges:
        return dict(grids.activations), 0
    sites = _sites(state, units, target)
    judges = _Judges(state, grids, {unit.name: unit for unit in units})
    now = dict(grids.activations)
    improved = 0
    for done, bridge in enumerate(bridges):
        inside = _inside(state.graph, bridge, sites, frozenset(fixed))
        found = descend(inside.free, now, *judges.of(bridge, inside)) if inside.free else {}
        for name, owner in sites.owners.items():
            if owner in found and name in now:
                now[name] = found[owner]
        improved += bool(found)
        state.tick(done + 1, len(bridges))
    return now, improved


class _Judges:
    """Runs bridges: the network, the samples and the rounded weights."""

    def __init__(self, state: State, grids: Grids, units: Mapping[str, Unit]) -> None:
        from qhyvit_onnx.kernels.devices import device_of  # noqa: PLC0415 - torch is optional
        from qhyvit_onnx.kernels.executor import Executor  # noqa: PLC0415 - torch is optional

        program = program_of(state.get(FLOAT))
        self._executor = Executor(
            program, device=device_of(state.config), opaque=opaque_runner(program)
        )
        self._samples = list(islice(state.calibration, SAMPLES))
        self._graph, self._gains = state.graph, state.get(EVIDENCE).gains
        self._grids, self._units = grids, units

    def of(self, bridge: Bridge, inside: _Inside) -> tuple[Cost, Cost]:
        """Return what a bridge costs on the samples that lead, and on those that judge."""
        from qhyvit_onnx.kernels.quantizers import constant  # noqa: PLC0415 - torch is optional
        from qhyvit_onnx.kernels.segment import Segment  # noqa: PLC0415 - torch is optional

        weights: dict[Key, Hook] = {
            key: constant(self._grids.weight_of(self._units[name]))
            for key, name in inside.weights.items()
        }
        costs = {name: self._gains[name] for name in bridge.outputs if name in self._gains}
        entering = _entering(self._graph, bridge)
        halves = self._samples[::2], self._samples[1::2] or self._samples
        lead, judge = (
            _cost(Segment(self._executor, half, entering, costs), inside, weights)
            for half in halves
        )
        return lead, judge


def _cost(segment: "Segment", inside: _Inside, weights: "Mapping[Key, Hook]") -> Cost:
    """Return the function that says what the outputs of a bridge cost on given grids."""
    from qhyvit_onnx.kernels.quantizers import quantizer  # noqa: PLC0415 - torch is optional

    def cost(grids: Mapping[str, Grid]) -> float:
        rounding = {name: quantizer(grids[name]) for name in set(inside.activations.values())}
        places = {key: rounding[name] for key, name in inside.activations.items()}
        return segment.cost({**weights, **places})

    return cost


def _sites(state: State, units: list[Unit], target: Target) -> Sites:
    """Return where the model rounds if nothing is left float for its sensitivity."""
    board = Board(state.graph, units, target.reaching(state.config.placement))
    board.choose(state.get(RANGES), state.config.exclude)
    return sites_of(state.graph, units, board.placement())


def _inside(graph: Graph, bridge: Bridge, sites: Sites, fixed: frozenset[str]) -> _Inside:
    members = set(bridge.nodes)
    near = {out.name for n in graph.nodes if n.name in members for out in n.outputs}
    near |= set(_entering(graph, bridge))

    def here(key: Key) -> bool:
        return key in near if isinstance(key, str) else key[0] in members

    inside = {key: name for key, name in sites.activations.items() if here(key)}
    outside = {name for key, name in sites.activations.items() if key not in inside}
    free = [name for name in dict.fromkeys(inside.values()) if name not in outside | fixed]
    weights = {key: name for key, name in sites.weights.items() if here(key)}
    return _Inside(inside, weights, tuple(free))


def _entering(graph: Graph, bridge: Bridge) -> list[str]:
    """Return what the nodes of a bridge read from outside."""
    nodes = [node for node in graph.nodes if node.name in set(bridge.nodes)]
    written = {out.name for node in nodes for out in node.outputs}
    read = (t.name for node in nodes for t in node.inputs if t.name and not is_constant(t))
    return [name for name in dict.fromkeys(read) if name not in written]
