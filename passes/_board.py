# SPDX-License-Identifier: Apache-2.0
"""The board that ``place`` plays on: units, their neighbours, and what is chosen."""

from collections.abc import Collection, Mapping, Sequence

from qhyvit_onnx.facts import Placement
from qhyvit_onnx.graph import Graph, Node, Tensor, is_output, producer
from qhyvit_onnx.units import Unit, moves, readers, source_of


class Board:
    """Which units run int8; every question about neighbours is answered here."""

    def __init__(self, graph: Graph, units: Sequence[Unit], chosen: Collection[str]) -> None:
        """Know the units, and the names of those that run int8."""
        self.graph, self.units, self.chosen = graph, list(units), chosen
        self._owner = {node.name: unit for unit in units for node in unit.nodes}

    def is_int8(self, node: Node | None) -> bool:
        """Tell whether ``node`` belongs to a chosen unit."""
        return (
            node is not None
            and node.name in self._owner
            and self._owner[node.name].name in self.chosen
        )

    def writes_codes(self, unit: Unit) -> bool:
        """Tell whether the integer kernel of ``unit`` writes uint8 rather than float."""
        return not unit.may_write_floats or self._all_int8(unit.output)

    def placement(self) -> Placement:
        """Return the choice, with the tensors that travel as uint8 and their grid owners."""
        carried = self._carried()
        sources = {name: source_of(tensor).name for name, tensor in carried.items()}
        order = tuple(unit.name for unit in self.units if unit.name in self.chosen)
        return Placement(order, sources, {})

    def _all_int8(self, tensor: Tensor) -> bool:
        """Tell whether every reader of ``tensor``, through movement, is a chosen unit."""
        nodes = list(readers(tensor))
        outputs = any(is_output(self.graph, out) for out in _through(tensor))
        return bool(nodes) and not outputs and all(self.is_int8(node) for node in nodes)

    def _carried(self) -> dict[str, Tensor]:
        carried: dict[str, Tensor] = {}
        for unit in self.units:
            if unit.name in self.chosen:
                written = (unit.output,) if self.writes_codes(unit) else ()
                for tensor in (*unit.inputs, *unit.interior, *written):
                    carried[tensor.name] = tensor
        movers = [node for node in self.graph.nodes if moves(node)]
        while added := [
            t for node in movers for t in self._spread(node, carried) if t.name not in carried
        ]:
            carried.update({tensor.name: tensor for tensor in added})
        return carried

    def _spread(self, node: Node, carried: Mapping[str, Tensor]) -> list[Tensor]:
        """Return what must be carried too so that ``node`` moves codes instead of floats."""
        source, outs = node.inputs[0], list(node.outputs)
        if not any(out.name in carried for out in outs):
            return []
        if source.name in carried:
            return outs
        wanted = all(_moved_codes(reader, carried) for reader in source.outputs)
        return [source, *outs] if wanted and producer(source) is not None else []


def _moved_codes(node: Node, carried: Mapping[str, Tensor]) -> bool:
    return moves(node) and all(out.name in carried for out in node.outputs)


def _through(tensor: Tensor) -> list[Tensor]:
    """Return ``tensor`` and what data movement makes of it."""
    below = (out for node in tensor.outputs if moves(node) for out in node.outputs)
    return [tensor, *(t for out in below for t in _through(out))]
