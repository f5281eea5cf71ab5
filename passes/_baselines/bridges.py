# SPDX-License-Identifier: Apache-2.0
"""Bridges as one piece: what rounding inside does to what leaves them."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from qhyvit_onnx.facts import BRIDGES, EVIDENCE, FLOAT, Bridge
from qhyvit_onnx.graph import Graph, is_constant
from qhyvit_onnx.kernels.layer_search import Floats
from qhyvit_onnx.passes._baselines.pieces import Activation, AnyGrid, Piece, Reading
from qhyvit_onnx.programs import opaque_runner, program_of
from qhyvit_onnx.state import State
from qhyvit_onnx.units import Unit

if TYPE_CHECKING:
    from qhyvit_onnx.kernels.executor import Hook
    from qhyvit_onnx.kernels.segment import Segment

SAMPLES = 8
"""Calibration samples that are run through a bridge for every candidate."""

Place = tuple[str, int]
"""Step and input of a program."""


class BridgeJudge:
    """One bridge with every layer inside rounded as it was chosen last."""

    def __init__(self, segment: "Segment", units: Iterable[str]) -> None:
        """Nothing is rounded yet; ``units`` are the layers and products inside."""
        self._segment, self._units = segment, frozenset(units)
        self._hooks: dict[Place, Hook] = {}

    def round_activation(self, reading: Reading, grid: AnyGrid) -> None:
        """Round what one layer of the bridge reads."""
        self._hooks[_place(reading)] = _quantizer(grid)

    def round_weight(self, unit: Unit, weight: Floats) -> None:
        """Round the weight of one layer of the bridge."""
        self._hooks[unit.name, 1] = _constant(weight)

    def with_activation(self, item: Activation, grid: AnyGrid) -> float:
        """Return what the outputs of the bridge cost with ``item`` on another grid."""
        hook = _quantizer(grid)
        inside = (r for r in item.readings if r.piece.unit.name in self._units)
        return self._segment.cost({**self._hooks, **{_place(r): hook for r in inside}})

    def with_weight(self, unit: Unit, weight: Floats) -> float:
        """Return what the outputs of the bridge cost with another weight."""
        return self._segment.cost({**self._hooks, (unit.name, 1): _constant(weight)})


def judges_of(state: State, pieces: Iterable[Piece]) -> dict[str, BridgeJudge]:
    """Return, by unit, the bridge that it is measured with: the first that it is in.

    A bridge without a gradient at its outputs is none: its layers are measured by themselves.
    """
    gains = state.get(EVIDENCE).gains
    names = {piece.unit.name for piece in pieces}
    found: dict[str, BridgeJudge] = {}
    bridges = [b for b in state.get(BRIDGES) if any(out in gains for out in b.outputs)]
    if not bridges:
        return found
    from qhyvit_onnx.kernels.devices import device_of  # noqa: PLC0415 - torch is optional
    from qhyvit_onnx.kernels.executor import Executor  # noqa: PLC0415 - torch is optional
    from qhyvit_onnx.kernels.segment import Segment  # noqa: PLC0415 - torch is optional

    program = program_of(state.get(FLOAT))
    executor = Executor(program, device=device_of(state.config), opaque=opaque_runner(program))
    samples = list(islice(state.calibration, SAMPLES))
    for bridge in bridges:
        inside = (set(bridge.nodes) & names) - found.keys()
        if inside:
            costs = _costs(bridge, gains)
            segment = Segment(executor, samples, _entering(state.graph, bridge), costs)
            found |= dict.fromkeys(sorted(inside), BridgeJudge(segment, inside))
    return found


def _costs(bridge: Bridge, gains: Mapping[str, float]) -> dict[str, float]:
    return {name: gains[name] for name in bridge.outputs if name in gains}


def _entering(graph: Graph, bridge: Bridge) -> list[str]:
    """Return what the nodes of a bridge read from outside."""
    members = set(bridge.nodes)
    nodes = [node for node in graph.nodes if node.name in members]
    written = {out.name for node in nodes for out in node.outputs}
    read = (tensor for node in nodes for tensor in node.inputs)
    names = (t.name for t in read if t.name and not is_constant(t))
    return [name for name in dict.fromkeys(names) if name not in written]


def _place(reading: Reading) -> Place:
    return reading.piece.unit.name, reading.side


def _quantizer(grid: AnyGrid) -> "Hook":
    from qhyvit_onnx.kernels.quantizers import quantizer  # noqa: PLC0415 - torch is optional

    return quantizer(grid)


def _constant(weight: Floats) -> "Hook":
    from qhyvit_onnx.kernels.quantizers import constant  # noqa: PLC0415 - torch is optional

    return constant(weight)
