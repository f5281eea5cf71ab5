# SPDX-License-Identifier: Apache-2.0
"""The fastest placement there is, whatever it does to the output."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from qhyvit_onnx.config import Extent
from qhyvit_onnx.costs.sizes import rest_cost, size_of
from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.facts import RANGES, Prediction
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.passes._globs import unmatched
from qhyvit_onnx.passes._ledger import Ledger
from qhyvit_onnx.passes._limits import limit_of
from qhyvit_onnx.state import Fact, State
from qhyvit_onnx.symbolic.dims import is_number
from qhyvit_onnx.units import Kind, Unit, is_softmax, source_of
from qhyvit_onnx.work import shapes_at


@dataclass(frozen=True, slots=True)
class Fastest:
    """Which units run int8 in the fastest placement, and what was weighed for it."""

    ledger: Ledger
    """What was minimized: with Extent.FULL without what int8 costs."""
    prices: Ledger
    """What the target's table says."""
    refused: Mapping[str, str]
    """By name, why a unit stays float whatever it costs."""
    chosen: frozenset[str]
    """Names of units."""
    rest: float
    """Cost of what is in no unit, which is float in any placement."""
    work: float
    """Multiply-adds of one run, of the units whose sizes are known."""

    def predict(self, chosen: Collection[str], unit: str) -> Prediction:
        """Return what the target's table says of float, of all that can be int8, of ``chosen``."""
        able = self.prices.lines.keys() - self.refused.keys()
        costs = (self.prices.cost(names) + self.rest for names in (frozenset(), able, chosen))
        return Prediction(unit, *costs)


FASTEST: Fact[Fastest] = Fact("fastest")


def fastest(
    state: State, units: Sequence[Unit], target: Target, grids: Mapping[str, Grid]
) -> Fastest:
    """Return the cheapest placement on ``target``; with Extent.FULL int8 costs nothing.

    ``grids`` are those of activations. Sizes are those of the calibration samples, as tensors were
    seen and else as shapes say; what hangs on data counts nothing.

    Error:
        ConfigError when a pattern of --exclude or --force-int8 names nothing that it could.
    """
    if missing := unmatched(state.config.exclude, [node.name for node in state.graph.nodes]):
        raise ConfigError(
            f"--exclude {missing[0]!r} matches no node", hint="see qhv-onnx inspect -v"
        )
    everything = state.config.placement is Extent.FULL
    sample = next(iter(state.calibration), {})
    stats = state.get(RANGES)
    told = shapes_at(state.graph, {name: array.shape for name, array in sample.items()})
    known = {name: shape for name, shape in told.items() if all(map(is_number, shape))}
    shapes = {**known, **{name: item.shape for name, item in stats.items()}}

    def refusal(unit: Unit) -> str:
        loose = state.config.approximate_gelu
        return _refusal(unit, stats, everything) or limit_of(unit, stats, grids, approximate=loose)

    refused = {
        unit.name: reason
        for unit in units
        if (reason := _excluded(unit, state.config.exclude) or refusal(unit))
    }
    forced = _forced(state.config.force_int8, units, refused)
    prices = Ledger(state.graph, units, target, shapes, forced)
    free = prices
    if everything:
        free = Ledger(state.graph, units, target.with_free_int8(), shapes, forced)
    allowed = prices.lines.keys() - refused.keys()
    rest = rest_cost(state.graph, units, target, shapes)
    work = float(sum(size_of(unit, shapes).macs for unit in units))
    return Fastest(free, prices, refused, frozenset(free.cheapest(allowed, {})), rest, work)


def _forced(
    patterns: Sequence[str], units: Sequence[Unit], refused: Mapping[str, str]
) -> frozenset[str]:
    """Return the units that ``patterns`` name and that can run int8; each must name one."""
    found: set[str] = set()
    for pattern in patterns:
        named = [unit for unit in units if _is_named(unit, pattern)]
        able = {unit.name for unit in named} - refused.keys()
        if not able:
            why = f": {named[0].name} stays float: {refused[named[0].name]}" if named else ""
            raise ConfigError(
                f"--force-int8 {pattern!r} matches no unit that can run int8{why}",
                hint="see qhv-onnx inspect -v",
            )
        found |= able
    return frozenset(found)


def _excluded(unit: Unit, patterns: Sequence[str]) -> str:
    hits = [pattern for pattern in patterns if _is_named(unit, pattern)]
    return f"excluded by {hits[0]!r}" if hits else ""


def _is_named(unit: Unit, pattern: str) -> bool:
    """Tell whether ``pattern`` matches any node of ``unit``."""
    return any(fnmatchcase(node.name, pattern) for node in unit.nodes)


def _refusal(unit: Unit, stats: Mapping[str, TensorStats], everything: bool) -> str:  # noqa: FBT001
    """Return why ``unit`` stays float whatever its grids, else nothing."""
    if unit.kind is Kind.SOFTMAX and not everything:
        return "Softmax is faster in float"  # on every target; what it reads is not even watched
    if any(not is_softmax(t) and t.name not in stats for t in map(source_of, unit.inputs)):
        return "no range is known for what it reads: empty, or not finite"
    return ""
