# SPDX-License-Identifier: Apache-2.0
"""What a pass is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from qhyvit_onnx.state import Fact, State


@dataclass(frozen=True)
class Outcome:
    """What a pass did: how many places it changed, and a line for the report."""

    changed: int
    note: str
    misses: Mapping[str, int] = field(default_factory=dict)
    """Near-misses by reason, for ``compile -v``."""


@dataclass(frozen=True)
class Pass(ABC):
    """One step from a valid graph to a valid graph.

    Options are dataclass fields, so a pass prints as the call that rebuilds it.
    Between ``run`` entry and exit the graph may be broken; at both ends it must check.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """What it does, in a few words: ``qhv-onnx passes`` prints it."""
    needs: ClassVar[tuple[Fact[Any], ...]] = ()
    gives: ClassVar[tuple[Fact[Any], ...]] = ()

    @abstractmethod
    def run(self, state: State) -> Outcome:
        """Edit ``state.graph`` in place; ``put`` every fact named in ``gives``."""
