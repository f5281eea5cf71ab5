# SPDX-License-Identifier: Apache-2.0
"""Bridges as one unit: scales inside, by what leaves the bridge with every layer in it rounded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.facts import EVIDENCE, Bridge, Grids
from qhyvit_onnx.graph import is_output
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.passes._board import Board
from qhyvit_onnx.passes._fastest import fastest
from qhyvit_onnx.passes._searching.descent import Cost, descend
from qhyvit_onnx.passes._segments import (
    SAMPLES,
    entering,
    executor_of,
    measurable,
    segments_of,
)
from qhyvit_onnx.passes._simulation import Key, Sites, sites_of
from qhyvit_onnx.state import State
from qhyvit_onnx.units import Unit

if TYPE_CHECKING:
    from qhyvit_onnx.kernels.executor import Hook
    from qhyvit_onnx.kernels.segment import Segment


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
    """Return the grids by source, some of them changed, and how many bridges were improved.

    Weights stay as they are in ``grids``. A bridge without a gradient at its outputs is left as it
    is. ``fixed``: tensors whose grid others rely on.
    """
    units, now, improved = list(units), dict(grids.activations), 0
    bridges = measurable(state)
    if not bridges:
        return now, 0
    sites = _sites(state, units, target, grids.activations)
    inside = [_inside(state, bridge, sites, frozenset(fixed)) for bridge in bridges]
    judges = _Judges(state, grids, {unit.name: unit for unit in units}).of(bridges, inside)
    for done, (item, (lead, judge)) in enumerate(zip(inside, judges, strict=True)):
        found = descend(item.free, now, lead, judge)
        now |= found
        improved += bool(found)
        state.tick(done + 1, len(bridges))
    return now, improved


class _Judges:
    """What bridges cost on given grids, with the weights inside as they are rounded."""

    def __init__(self, state: State, grids: Grids, units: Mapping[str, Unit]) -> None:
        self._state, self._grids, self._units = state, grids, units

    def of(self, bridges: Sequence[Bridge], inside: Sequence[_Inside]) -> list[tuple[Cost, Cost]]:
        """Return the cost of each bridge on the samples that lead, and on those that judge."""
        samples = list(islice(self._state.calibration, SAMPLES))
        executor = executor_of(self._state)
        lead, judge = (
            segments_of(self._state, bridges, executor, half)
            for half in (samples[::2], samples[1::2] or samples)
        )
        weights = [self._weights(item) for item in inside]
        return [
            (_cost(one, item, rounded), _cost(other, item, rounded))
            for one, other, item, rounded in zip(lead, judge, inside, weights, strict=True)
        ]

    def _weights(self, inside: _Inside) -> "dict[Key, Hook]":
        from qhyvit_onnx.kernels.quantizers import constant  # noqa: PLC0415 - torch is optional

        return {
            key: constant(self._grids.weight_of(self._units[name]))
            for key, name in inside.weights.items()
        }


def _cost(segment: "Segment", inside: _Inside, weights: "Mapping[Key, Hook]") -> Cost:
    """Return the function that says what the outputs of a bridge cost on given grids."""
    from qhyvit_onnx.kernels.quantizers import quantizer  # noqa: PLC0415 - torch is optional

    def cost(grids: Mapping[str, Grid]) -> float:
        rounding = {name: quantizer(grids[name]) for name in set(inside.activations.values())}
        places = {key: rounding[name] for key, name in inside.activations.items()}
        return segment.cost({**weights, **places})

    return cost


def _sites(state: State, units: list[Unit], target: Target, grids: Mapping[str, Grid]) -> Sites:
    """Return where the model rounds if nothing is left float for its sensitivity."""
    chosen = fastest(state, units, target, grids).chosen
    return sites_of(state.graph, units, Board(state.graph, units, chosen).placement())


def _inside(state: State, bridge: Bridge, sites: Sites, fixed: frozenset[str]) -> _Inside:
    members, tensors = set(bridge.nodes), state.graph.tensors()
    near = {out.name for n in state.graph.nodes if n.name in members for out in n.outputs}
    near |= set(entering(state.graph, bridge))
    costed = set(bridge.outputs) & state.get(EVIDENCE).gains.keys()

    def here(key: Key) -> bool:
        return key in near if isinstance(key, str) else key[0] in members

    def leaves(key: Key) -> bool:
        """Tell whether somebody outside sees what is rounded here, at no cost that is counted."""
        if not here(key):
            return True
        if not isinstance(key, str) or key in costed:
            return False
        read_outside = any(node.name not in members for node in tensors[key].outputs)
        return read_outside or is_output(state.graph, tensors[key])

    inside = {key: name for key, name in sites.activations.items() if here(key)}
    outside = {name for key, name in sites.activations.items() if leaves(key)}
    free = [name for name in dict.fromkeys(inside.values()) if name not in outside | fixed]
    weights = {key: name for key, name in sites.weights.items() if here(key)}
    return _Inside(inside, weights, tuple(free))
