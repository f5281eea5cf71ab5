# SPDX-License-Identifier: Apache-2.0
"""Symbolic shapes and index maps of data movement: off in this version."""

from dataclasses import dataclass

from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.state import State


@dataclass(frozen=True)
class Layout(Pass):
    """Holds its place in the pipeline, so that the printed pipeline is the whole truth."""

    name = "layout"
    summary = "symbolic shapes and index maps of data movement"

    def run(self, state: State) -> Outcome:
        """Change nothing."""
        return Outcome(0, "off (not built yet: movement is looked through op by op)")
