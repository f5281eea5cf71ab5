# SPDX-License-Identifier: Apache-2.0
"""Learned rounding and scales, block by block: off in this version."""

from dataclasses import dataclass

from qhyvit_onnx.facts import GRIDS, SEARCHED
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.state import State


@dataclass(frozen=True)
class Reconstruct(Pass):
    """Holds its place in the pipeline, so that the printed pipeline is the whole truth."""

    name = "reconstruct"
    summary = "learned rounding and scales, block by block"
    needs = (SEARCHED,)
    gives = (GRIDS,)

    def run(self, state: State) -> Outcome:
        """Put GRIDS; the graph stays as it is."""
        state.put(GRIDS, state.get(SEARCHED))
        return Outcome(0, "off (not built yet: weights are rounded to nearest)")
