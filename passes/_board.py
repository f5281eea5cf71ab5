# SPDX-License-Identifier: Apache-2.0
"""The board that ``place`` plays on: units, their neighbours, and what is chosen so far."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod

from qhyvit_onnx.facts import Placement
from qhyvit_onnx.graph import Graph, Node, Tensor, is_output, producer
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.passes._limits import limit_of
from qhyvit_onnx.targets import Rule, Target
from qhyvit_onnx.units import CONVOLUTIONS, Unit, is_softmax, moves, readers, source_of


class Board:
    """Which units are chosen to run int8; every question about neighbours is answered here."""

    def __init__(self, graph: Graph, units: Sequence[Unit], target: Target) -> None:
        """Start with nothing chosen."""
        self.graph, self.units, self.target = graph, list(units), target
        self.chosen: set[str] = set()
        self.reasons: dict[str, str] = {}
        self._owner = {node.name: unit for unit in units for node in unit.nodes}
        self._maker = {unit.output.name: unit for unit in units}

    def choose(self, stats: Mapping[str, TensorStats], exclude: Sequence[str] = ()) -> None:
        """Choose by the target's table without what ``exclude`` names, then settle neighbours."""
        for unit in self.units:
            reason = _excluded(unit, exclude) or self._refusal(unit, stats)
            if reason:
                self.reasons[unit.name] = reason
            else:
                self.chosen.add(unit.name)
        self.settle()

    def drop(self, names: Mapping[str, str]) -> None:
        """Leave the named units float, each for its reason, and settle what depended on them."""
        self.reasons.update(names)
        self.chosen -= names.keys()
        self.settle()

    def settle(self) -> None:
        """Drop units that want int8 neighbours and lack them, until nothing changes."""
        dependent = [u for u in self.units if self._rule(u) in {Rule.BETWEEN, Rule.FED}]
        while lonely := [u for u in dependent if u.name in self.chosen and not self._placed(u)]:
            for unit in lonely:
                self.chosen.discard(unit.name)
                self.reasons[unit.name] = self.target.rows[unit.kind].reason

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
        return Placement(order, sources, dict(self.reasons))

    def _refusal(self, unit: Unit, stats: Mapping[str, TensorStats]) -> str:
        row = self.target.rows[unit.kind]
        if row.rule is Rule.NEVER:
            return row.reason
        if any(not is_softmax(t) and t.name not in stats for t in map(source_of, unit.inputs)):
            return "no range is known for what it reads: empty, or not finite"
        if reason := limit_of(unit, stats):
            return reason
        if row.min_reuse and (reuse := _reuse(unit, stats)) < row.min_reuse:
            return f"{reuse:.0f} multiply-adds per element: {row.too_little}"
        return ""

    def _rule(self, unit: Unit) -> Rule:
        return self.target.rows[unit.kind].rule

    def _placed(self, unit: Unit) -> bool:
        """Tell whether ``unit`` has the int8 neighbours that its rule asks for."""
        makers = [self._maker.get(source_of(tensor).name) for tensor in unit.inputs]
        codes = [
            m for m in makers if m is not None and m.name in self.chosen and self.writes_codes(m)
        ]
        if self._rule(unit) is Rule.FED:  # codes that are there anyway, not written for this unit
            return len(codes) == len(makers) and not any(m.may_write_floats for m in codes)
        return len(codes) == len(makers) and self._all_int8(unit.output)

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


def unmatched(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the patterns that match none of ``names``: a typing error the user should hear of."""
    return [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]


def _moved_codes(node: Node, carried: Mapping[str, Tensor]) -> bool:
    return moves(node) and all(out.name in carried for out in node.outputs)


def _through(tensor: Tensor) -> list[Tensor]:
    """Return ``tensor`` and what data movement makes of it."""
    below = (out for node in tensor.outputs if moves(node) for out in node.outputs)
    return [tensor, *(t for out in below for t in _through(out))]


def _excluded(unit: Unit, patterns: Sequence[str]) -> str:
    hits = [p for p in patterns if any(fnmatchcase(node.name, p) for node in unit.nodes)]
    return f"excluded by {hits[0]!r}" if hits else ""


def _reuse(unit: Unit, stats: Mapping[str, TensorStats]) -> float:
    """Return multiply-adds per element that crosses the unit's border."""
    seen = stats.get(unit.inputs[0].name)
    if unit.weight is None or seen is None:
        return 0.0
    read = prod(seen.shape)
    if unit.kind in CONVOLUTIONS:
        written, depth = prod(stats[unit.output.name].shape), prod(unit.weight.shape[1:])
    else:
        depth = seen.shape[-1]
        written = prod(seen.shape[:-1]) * (prod(unit.weight.shape) // depth)
    return float(written * depth / (read + written))
