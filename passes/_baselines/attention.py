# SPDX-License-Identifier: Apache-2.0
"""Logarithmic grids for what a softmax writes."""

from collections.abc import Sequence

import numpy as np

from qhyvit_onnx.kernels.evidence import Evidence
from qhyvit_onnx.methods import Attention
from qhyvit_onnx.passes._baselines.ranges import SHARES
from qhyvit_onnx.simulated import LogGrid
from qhyvit_onnx.units import Kind, Unit, source_of


def log_grid(
    units: Sequence[Unit], evidence: Evidence, name: str, attention: Attention, bits: int
) -> LogGrid:
    """Return the grid of the softmax output ``name``.

    Base 2 starts at 1. Base sqrt 2 starts at the percentile of three with the least squared error
    on what was drawn of the products that read it; at 1 where nothing was.
    """
    if attention is Attention.LOG2:
        return LogGrid(1.0, 1, bits)
    drawn = [
        (known.left, known.right)[side].ravel()
        for unit in units
        if unit.kind is Kind.PRODUCT and (known := evidence.products.get(unit.name))
        for side, tensor in enumerate(unit.inputs)
        if source_of(tensor).name == name
    ]
    if not drawn:
        return LogGrid(1.0, 2, bits)
    values = np.concatenate(drawn)
    scales = [max(float(np.quantile(values, share)), 1e-6) for share in SHARES]
    grids = [LogGrid(scale, 2, bits) for scale in scales]
    return min(grids, key=lambda grid: float(np.square(grid.fake(values) - values).sum()))
