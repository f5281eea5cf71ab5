# SPDX-License-Identifier: Apache-2.0
"""Symbolic shapes, and the index map of every chain of data movement; changes nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qhyvit_onnx.facts import LAYOUT
from qhyvit_onnx.layout.chains import Chain
from qhyvit_onnx.layout.completion import completed
from qhyvit_onnx.layout.roles import RoleKind
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.state import State


@dataclass(frozen=True)
class Layout(Pass):
    """Say where the elements of every activation come from, and where its channels lie."""

    name = "layout"
    summary = "symbolic shapes and index maps of data movement"
    gives = (LAYOUT,)

    def run(self, state: State) -> Outcome:
        """Put LAYOUT."""
        layout = completed(state.graph, state.model, state.calibration)
        state.put(LAYOUT, layout)
        shapes = f"shapes: {len(layout.unknown)} unknown"
        if layout.observed:
            shapes += f", {len(layout.observed)} observed on one sample"
        misses = Counter(layout.misses)
        misses["shape unknown"] += len(layout.unknown)
        return Outcome(0, f"{_chains(layout.chains)}; {shapes}", +misses)


def _chains(chains: Sequence[Chain]) -> str:
    permutations = sum(chain.map.is_permutation for chain in chains)
    kinds = Counter(chain.channel.kind for chain in chains)
    roles = ", ".join(f"{kinds[kind]} {kind}" for kind in RoleKind if kinds[kind])
    text = f"{len(chains)} chains, {permutations} permutations"
    return f"{text}; channel: {roles}" if roles else text
