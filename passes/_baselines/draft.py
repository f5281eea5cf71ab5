# SPDX-License-Identifier: Apache-2.0
"""The grids of a method in the making: from ranges, then changed tensor by tensor."""

from collections.abc import Iterable

import numpy as np

from qhyvit_onnx.config import Extent
from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.facts import EVIDENCE, RANGES, Grids
from qhyvit_onnx.graph import Tensor
from qhyvit_onnx.grid import Grid, WeightGrid, grid_for
from qhyvit_onnx.methods import Attention, Method, Norms, Scheme
from qhyvit_onnx.passes._baselines.attention import log_grid
from qhyvit_onnx.passes._baselines.norms import (
    column_factors,
    equalised_channels,
    linear_readers,
    power_of_two_factors,
)
from qhyvit_onnx.passes._baselines.pieces import Activation, Piece
from qhyvit_onnx.passes._baselines.ranges import ends_of, grid_between
from qhyvit_onnx.passes._baselines.roles import roles_of
from qhyvit_onnx.passes._baselines.weights import (
    between_percentiles,
    columns_of,
    deployable,
    grid_of,
    peaks_of,
    per_column,
)
from qhyvit_onnx.passes._limits import within_limits
from qhyvit_onnx.passes._matrices import Floats, limit_of, weight_of
from qhyvit_onnx.passes._sources import sources_of, spread
from qhyvit_onnx.passes._widths import activation_bits, widths_of
from qhyvit_onnx.simulated import ChannelGrid, ColumnGrid, Simulated
from qhyvit_onnx.state import State
from qhyvit_onnx.units import LAYERS, Unit, find_units, is_softmax

ONE = np.ones((), np.float32)


class Draft:
    """What is chosen so far, by name of the tensor that elements come from, and by layer."""

    def __init__(self, state: State, method: Method) -> None:
        """Give every tensor and weight the grid that its range asks for."""
        self.units = find_units(state.graph)
        self.stats = state.get(RANGES)
        self.roles = roles_of(state.graph)
        self._method, self._evidence = method, state.get(EVIDENCE)
        self._extent = state.config.placement
        self._widths = widths_of(state.config, self.units)
        self._bits = activation_bits(self.units, self._widths)
        self._simulated: dict[str, Simulated] = {}
        self._columns: dict[str, ColumnGrid] = {}
        self._grids = {
            name: self._range(tensor)
            for name, tensor in sources_of(self.units).items()
            if is_softmax(tensor) or name in self.stats
        }
        self._weights = {unit.name: self._weight(unit) for unit in self._layers()}
        if method.scheme is Scheme.ASYMMETRIC:
            self._columns = {unit.name: self._between(unit) for unit in self._layers()}

    def bits_of(self, source: Tensor) -> int:
        """Return the bits of an activation."""
        return self._bits.get(source.name, 8)

    def weight_bits(self, unit: Unit) -> int:
        """Return the bits of the weight of a layer."""
        return self._widths.of_layer(unit.name).weights

    def searchable(self, item: Activation) -> bool:
        """Tell whether there is anything to choose for an activation.

        An integer Softmax writes one grid only; a constant has one that holds it exactly.
        """
        name = item.source.name
        if is_softmax(item.source):
            return self._extent is Extent.FAST or self._method.attention is Attention.TWIN
        return name in self.stats and self.stats[name].low < self.stats[name].high

    def treat_norms(self) -> None:
        """Give tensors around norms a grid of channels, if the method does."""
        if self._method.norms is Norms.POWERS_OF_TWO:
            for name in sorted(self.roles.read_by_norms & self._sampled()):
                values, bits = self._evidence.tensors[name].values, self._bits.get(name, 8)
                self._simulated[name] = power_of_two_factors(values, self.stats[name], bits)
        if self._method.norms is Norms.CHANNELS:
            for name in sorted(self.roles.written_by_layer_norms & self._sampled()):
                self._equalise(name)

    def treat_attention(self) -> None:
        """Give what a softmax writes for a product a logarithmic grid, if the method does."""
        if self._method.attention in {Attention.LOG2, Attention.LOG_SQRT2}:
            for source in self._attended():
                bits, attention = self.bits_of(source), self._method.attention
                grid = log_grid(self.units, self._evidence, source.name, attention, bits)
                self._simulated[source.name] = grid

    def take(self, pieces: Iterable[Piece], activations: Iterable[Activation]) -> None:
        """Put in what a search of layer outputs has found."""
        for piece in pieces:
            if piece.weight is not None:
                self._weights[piece.unit.name] = piece.weight
        for item in activations:
            if isinstance(item.grid, Grid):
                self._grids[item.source.name] = item.grid
            elif item.grid is not None:
                same = item.same
                by_channel = isinstance(item.grid, ChannelGrid) and same is not None
                self._simulated[same.name if by_channel and same is not None else item.key] = (
                    item.grid
                )

    def result(self, target: Target) -> Grids:
        """Return all grids, as the kernels of ``target`` need them where they can be emitted."""
        grids = within_limits(self.units, self._grids, self.stats)
        activations = spread(self.units, grids)
        weights = {}
        for unit in self._layers():
            step = (
                activations[unit.inputs[0].name].scale
                if unit.inputs[0].name in activations
                else 1.0
            )
            weights[unit.name] = deployable(unit, self._weights[unit.name], step, target.pair_limit)
        return Grids(
            activations, weights, simulated=dict(self._simulated), columns=dict(self._columns)
        )

    def _layers(self) -> list[Unit]:
        return [unit for unit in self.units if unit.kind in LAYERS]

    def _range(self, source: Tensor) -> Grid:
        bits, method = self.bits_of(source), self._method
        if is_softmax(source):
            return Grid(2.0**-bits, 0, bits)  # 0 to 1, whatever was seen
        seen = self.stats[source.name]
        if method.outputs is not None:
            return grid_for(seen.low, seen.high, bits=bits)
        low, high = ends_of(seen, method.ends, bits)
        if low == high:  # all but a few values are the same: these few are what it is about
            low, high = seen.low, seen.high
        found = grid_between(low, high, bits, method.overflow)
        if isinstance(found, Grid):
            return found
        self._simulated[source.name] = found
        return grid_for(low, high, bits=bits)

    def _weight(self, unit: Unit) -> WeightGrid:
        bits = self.weight_bits(unit)
        apart = per_column(unit, self._method.weights)
        peaks = peaks_of(columns_of(unit, weight_of(unit)), apart=apart)
        return grid_of(unit, peaks / np.float32(limit_of(bits)), bits)

    def _between(self, unit: Unit, factors: Floats = ONE) -> ColumnGrid:
        weight = weight_of(unit) * factors
        return ColumnGrid(between_percentiles(unit, weight, self.weight_bits(unit)), factors)

    def _sampled(self) -> frozenset[str]:
        """Return the tensors with a grid of which places were drawn channel by channel."""
        return frozenset(
            name
            for name, found in self._evidence.tensors.items()
            if name in self._grids and found.values.shape[1] == self.stats[name].channel_low.size
        )

    def _equalise(self, name: str) -> None:
        """Round what a LayerNorm writes by channels, and the layers behind as if folded."""
        readers = linear_readers(self.units, name)
        if not readers:
            return
        values, bits = self._evidence.tensors[name].values, self._bits.get(name, 8)
        grid = equalised_channels(values, self.stats[name], bits)
        self._simulated[name] = grid
        for unit in readers:
            self._columns[unit.name] = self._between(unit, column_factors(unit, grid))

    def _attended(self) -> list[Tensor]:
        """Return what a softmax writes and a layer or product reads."""
        sources = sources_of(self.units).values()
        return [tensor for tensor in sources if is_softmax(tensor) and tensor.name in self._bits]
