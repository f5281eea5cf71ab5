# SPDX-License-Identifier: Apache-2.0
"""Bridges as one piece: what rounding inside does to what leaves them."""

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from qhyvit_onnx.kernels.layer_search import Floats
from qhyvit_onnx.passes._baselines.pieces import Activation, AnyGrid, Piece, Reading
from qhyvit_onnx.passes._segments import SAMPLES, executor_of, measurable, segments_of
from qhyvit_onnx.passes._simulation import Key
from qhyvit_onnx.state import State
from qhyvit_onnx.units import Unit

if TYPE_CHECKING:
    from qhyvit_onnx.kernels.executor import Hook
    from qhyvit_onnx.kernels.segment import Segment


class BridgeJudge:
    """One bridge with every layer inside rounded as it was chosen last."""

    def __init__(self, segment: "Segment", units: Iterable[str]) -> None:
        """Nothing is rounded yet; ``units`` are the layers and products inside."""
        self._segment, self._units = segment, frozenset(units)
        self._hooks: dict[Key, Hook] = {}

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
    names = {piece.unit.name for piece in pieces}
    found: dict[str, BridgeJudge] = {}
    bridges = measurable(state)
    if not bridges:
        return found
    samples = list(islice(state.calibration, SAMPLES))
    segments = segments_of(state, bridges, executor_of(state), samples)
    for bridge, segment in zip(bridges, segments, strict=True):
        inside = (set(bridge.nodes) & names) - found.keys()
        if inside:
            found |= dict.fromkeys(sorted(inside), BridgeJudge(segment, inside))
    return found


def _place(reading: Reading) -> Key:
    return reading.piece.unit.name, reading.side


def _quantizer(grid: AnyGrid) -> "Hook":
    from qhyvit_onnx.kernels.quantizers import quantizer  # noqa: PLC0415 - torch is optional

    return quantizer(grid)


def _constant(weight: Floats) -> "Hook":
    from qhyvit_onnx.kernels.quantizers import constant  # noqa: PLC0415 - torch is optional

    return constant(weight)
