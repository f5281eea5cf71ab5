# SPDX-License-Identifier: Apache-2.0
"""What flows through the pipeline: the graph, the source model, and typed facts."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import onnx

from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.errors import PassError
from qhyvit_onnx.graph import Graph, export_model, import_graph
from qhyvit_onnx.interface import Pixels

T = TypeVar("T")


@dataclass(frozen=True)
class Fact(Generic[T]):
    """A typed key: ``state.get(STATS)`` is what STATS says to the type checker too."""

    name: str


def _silent(_done: int, _total: int) -> None:
    """Report progress to nobody."""


@dataclass
class State:
    """One compilation in flight.

    ``source`` is the user's model and is never edited; ``graph`` is edited in place by the passes.
    """

    source: onnx.ModelProto
    config: CompileConfig
    calibration: Feeds
    """Calibration samples; may be walked more than once."""
    held_back: Feeds | None = None
    """Samples kept out of calibration, to compare on; None when the data has no more."""
    pixels: Pixels | None = None
    """How ``source`` makes values of the pixels that it takes, if it does."""
    tick: Callable[[int, int], None] = _silent
    """Progress inside a pass: (done, total)."""
    graph: Graph = None
    _facts: dict[Fact[Any], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Import the graph of the source."""
        if self.graph is None:
            self.graph = import_graph(self.source)

    def put(self, fact: Fact[T], value: T) -> None:
        """Record a fact once; a second ``put`` is a PassError."""
        if fact in self._facts:
            raise PassError(f"fact {fact.name!r} was given twice")
        self._facts[fact] = value

    def get(self, fact: Fact[T]) -> T:
        """Return a fact; PassError when no earlier pass gave it."""
        if fact not in self._facts:
            raise PassError(f"fact {fact.name!r} was not given")
        value: T = self._facts[fact]
        return value

    def has(self, fact: Fact[Any]) -> bool:
        """Tell whether a fact was given."""
        return fact in self._facts

    @property
    def facts(self) -> frozenset[Fact[Any]]:
        """Every fact that was given."""
        return frozenset(self._facts)

    def fork(self) -> "State":
        """Return a copy to go on with: its graph and facts can be changed, these ones stay."""
        return replace(self, graph=self.graph.copy(), _facts=dict(self._facts))

    def model(self) -> onnx.ModelProto:
        """Return the graph as it stands now, as a model."""
        return export_model(self.graph, self.source)
