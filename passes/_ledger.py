# SPDX-License-Identifier: Apache-2.0
"""What a placement costs on a target: units, conversions between them, and layouts at borders.

The same ledger prices a given placement and finds the cheapest one, as a minimum cut.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from qhyvit_onnx.costs.sizes import elements_of, row_of, size_of
from qhyvit_onnx.costs.table import (
    DEQUANTIZE,
    QUANTIZE,
    Size,
    Target,
    float_key,
    int8_key,
    layout_key,
)
from qhyvit_onnx.graph import Graph, Tensor, is_output
from qhyvit_onnx.passes._cut import Choice
from qhyvit_onnx.units import CONVOLUTIONS, Kind, Unit, moves, readers, source_of
from qhyvit_onnx.work import Shapes

_FOLLOWING = frozenset({
    Kind.ADD, Kind.MUL, Kind.CONCAT, Kind.POOL, Kind.SILU, Kind.GELU, Kind.SIGMOID,
    Kind.LEAKY_RELU,
})  # fmt: skip
"""Kinds whose kernels take a map in the layout in which it comes."""


@dataclass(frozen=True, slots=True)
class Border:
    """One tensor on its way from the unit that makes it to those that read it."""

    tensor: str
    maker: str
    """Name of a unit; empty if what makes it is float."""
    writes_either: bool
    """Whether the maker, in int8, can write floats as well as codes."""
    readers: tuple[str, ...]
    """Names of units."""
    read_in_float: bool
    """Whether something else than a unit reads it."""
    quantize: float
    dequantize: float

    def cost(self, chosen: Collection[str]) -> float:
        """Return what Q and DQ of this tensor cost when ``chosen`` run int8."""
        wanted = any(name in chosen for name in self.readers)
        floats = self.read_in_float or any(name not in chosen for name in self.readers)
        codes = self.maker in chosen and not (self.writes_either and floats)
        return (self.quantize if wanted and not codes else 0.0) + (
            self.dequantize if codes and floats else 0.0
        )

    def enter(self, choice: Choice) -> None:
        """Add to ``choice`` what ``cost`` says, by helper items for any and all of the readers."""
        asked, codes = ("asked", self.tensor), ("all int8", self.tensor)
        for name in self.readers:
            choice.needs(name, asked)
            choice.needs(codes, name)
        if self.read_in_float:
            choice.force(codes, taken=False)
        if self.writes_either:  # codes only for readers that all want them, else floats
            choice.needs(codes, self.maker)
            choice.without(asked, codes, self.quantize)
        elif self.maker:
            choice.without(asked, self.maker, self.quantize)
            choice.without(self.maker, codes, self.dequantize)
        else:
            choice.taking(asked, self.quantize)


@dataclass(frozen=True, slots=True)
class Line:
    """What one unit costs by itself."""

    float_cost: float
    int8_cost: float


class Ledger:
    """Prices of one graph on one target, in the unit of its table."""

    def __init__(
        self,
        graph: Graph,
        units: Iterable[Unit],
        target: Target,
        shapes: Shapes,
        forced: Collection[str] = (),
    ) -> None:
        """Look every unit and every tensor between units up in the table of ``target``.

        The units ``forced`` run int8 in the cheapest placement, whatever they cost.
        """
        self._forced = forced
        self._graph, self._target, self._shapes = graph, target, shapes
        self._units = list(units)
        self._owner = {node.name: unit for unit in self._units for node in unit.nodes}
        self._maker = {unit.output.name: unit for unit in self._units}
        self.lines = {unit.name: self._line(unit) for unit in self._units}
        self.borders = [self._border(tensor) for tensor in self._tensors()]
        self._layouts = [pair for tensor in self._tensors() for pair in self._changes(tensor)]

    def cost(self, chosen: Collection[str]) -> float:
        """Return what the graph costs when the units ``chosen`` run int8."""
        units = sum(
            line.int8_cost if name in chosen else line.float_cost
            for name, line in self.lines.items()
        )
        borders = sum(border.cost(chosen) for border in self.borders)
        return units + borders + sum(
            cost for first, second, cost in self._layouts
            if (not first or first in chosen) and (not second or second not in chosen)
        )  # fmt: skip

    def cheapest(
        self, allowed: Collection[str], noise: Mapping[str, float], weight: float = 0.0
    ) -> set[str]:
        """Return the units to run int8, out of ``allowed``, that make the least cost.

        ``noise`` of a unit that runs int8 counts as cost, ``weight`` for each 1.0 of it.
        """
        choice = Choice()
        for name, line in self.lines.items():
            choice.leaving(name, line.float_cost)
            choice.taking(name, line.int8_cost + weight * noise.get(name, 0.0))
            if name in self._forced or name not in allowed:
                choice.force(name, taken=name in allowed)
        for border in self.borders:
            border.enter(choice)
        for first, second, cost in self._layouts:
            if first and second:
                choice.without(first, second, cost)
            elif first:
                choice.taking(first, cost)
            else:
                choice.leaving(second, cost)
        taken = choice.solve()
        return {name for name in self.lines if name in taken}

    def _line(self, unit: Unit) -> Line:
        row, size = row_of(unit), size_of(unit, self._shapes)
        return Line(
            self._target.cost(float_key(row), size),
            self._target.cost(int8_key(row), size),
        )

    def _tensors(self) -> Iterator[Tensor]:
        """Yield every tensor that a unit makes or reads, looked at before data movement, once."""
        ends = chain.from_iterable((*unit.inputs, unit.output) for unit in self._units)
        yield from {source.name: source for source in map(source_of, ends)}.values()

    def _border(self, tensor: Tensor) -> Border:
        nodes = list(readers(tensor))
        units = [self._owner[node.name] for node in nodes if node.name in self._owner]
        maker, size = self._maker.get(tensor.name), Size(0, elements_of(tensor, self._shapes))
        return Border(
            tensor.name,
            "" if maker is None else maker.name,
            maker is not None and maker.may_write_floats,
            tuple(dict.fromkeys(unit.name for unit in units)),
            len(units) < len(nodes) or self._is_public(tensor),
            self._target.cost(QUANTIZE, size),
            self._target.cost(DEQUANTIZE, size),
        )

    def _is_public(self, tensor: Tensor) -> bool:
        """Tell whether ``tensor``, or what data movement makes of it, is an output of the graph."""
        below = (out for node in tensor.outputs if moves(node) for out in node.outputs)
        return is_output(self._graph, tensor) or any(self._is_public(out) for out in below)

    def _changes(self, tensor: Tensor) -> Iterator[tuple[str, str, float]]:
        """Yield the changes of layout at ``tensor``: (int8, float, cost).

        The cost falls due when the first runs int8 and the second float; an empty name stands for
        one that does so in any case.
        """
        size = Size(0, elements_of(tensor, self._shapes))
        nhwc, blocked = (self._target.cost(layout_key(name), size) for name in ("nhwc", "blocked"))
        maker = self._maker.get(tensor.name)
        direct = [self._owner.get(node.name) for node in tensor.outputs]
        if is_output(self._graph, tensor):
            direct.append(None)
        for reader in {id(unit): unit for unit in direct}.values():
            yield from _change(maker, reader, nhwc, blocked)


def _change(
    maker: Unit | None, reader: Unit | None, nhwc: float, blocked: float
) -> Iterator[tuple[str, str, float]]:
    """Yield what it costs that two neighbours do not work in one layout."""
    if maker is reader:
        return
    for one, other in ((maker, reader), (reader, maker)):
        if one is None or one.kind not in CONVOLUTIONS:
            continue
        if other is not None and other.kind in CONVOLUTIONS:  # one of the two orders applies
            yield one.name, other.name, nhwc + blocked
        elif other is not None and other.kind in _FOLLOWING:
            yield one.name, other.name, nhwc
            if other.kind in {Kind.SILU, Kind.GELU}:  # no blocked layout in float
                yield "", one.name, blocked
            else:
                yield other.name, one.name, blocked
        else:
            yield one.name, "", nhwc
            yield "", one.name, blocked
