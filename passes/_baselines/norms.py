# SPDX-License-Identifier: Apache-2.0
"""Channels of what norms read and write, as FQ-ViT and RepQ-ViT round them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.grid import TINY_SCALE
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.passes._baselines.ranges import SHARES, best_channels, squared_errors
from qhyvit_onnx.passes._baselines.weights import input_axis
from qhyvit_onnx.passes._matrices import weight_of
from qhyvit_onnx.simulated import ChannelGrid
from qhyvit_onnx.units import CONVOLUTIONS, LAYERS, Unit, source_of

Floats = NDArray[np.float32]

POWERS = 4
"""Factors 1, 2, 4 and 8."""


def power_of_two_factors(values: Floats, seen: TensorStats, bits: int) -> ChannelGrid:
    """Return the grid ``s 2 ** a``, a in 0..3 for each channel, with one zero point for all.

    The largest step is that of the whole range; each channel takes the power with the least
    squared error.

    Shapes:
        values (P, C).

    Source:
        Power-of-Two Factor, FQ-ViT, arXiv 2111.13824.
    """
    top = (1 << bits) - 1
    step = max((seen.high - seen.low) / top, 16 * TINY_SCALE)
    zero = float(np.clip(-np.rint(seen.low / step), 0, top))
    zeros = np.full(values.shape[1], zero, np.float32)
    grids = [
        ChannelGrid(np.full(zeros.shape, step / 2**k, np.float32), zeros, -1, bits)
        for k in range(POWERS)  # the widest first: it wins a tie
    ]
    best = np.argmin([squared_errors(values, grid) for grid in grids], axis=0)
    scales = np.float32(step) / np.exp2(best).astype(np.float32)
    return ChannelGrid(scales, zeros, seen.axis, bits)


def equalised_channels(values: Floats, seen: TensorStats, bits: int) -> ChannelGrid:
    """Return an asymmetric grid for each channel, its range the best of three percentiles.

    The widest range is what calibration saw; the others come from the places that were drawn.

    Shapes:
        values (P, C).

    Source:
        scale reparameterisation after LayerNorm, RepQ-ViT, arXiv 2212.08254. Folded into norm
        and layer it is one scale and zero point, the means of these; rounding is the same where
        the mean zero point is a whole number, as it is taken to be here.
    """
    ranges = [(seen.channel_low, seen.channel_high)]
    for share in SHARES[1:]:
        low, high = np.quantile(values, [1 - share, share], axis=0)
        ranges.append((low, high))
    return best_channels(values, ranges, seen.axis, bits)


def linear_readers(units: Sequence[Unit], name: str) -> list[Unit]:
    """Return the layers that read the tensor ``name``; none if anything else of ``units`` does.

    Only layers that mix all of its channels, and read it as it is, can take a fold in.
    """
    found = [u for u in units if any(source_of(t).name == name for t in u.inputs)]
    whole = (
        unit.kind in LAYERS
        and unit.inputs[0].name == name
        and (unit.kind not in CONVOLUTIONS or unit.node.attrs.get("group", 1) == 1)
        for unit in found
    )
    return found if all(whole) else []


def column_factors(unit: Unit, grid: ChannelGrid) -> Floats:
    """Return what the input channels of a weight are multiplied by when ``grid`` is folded.

    Shapes:
        result broadcastable against the weight: ``s_c / mean(s)`` along its input channels.
    """
    shape = [1] * weight_of(unit).ndim
    shape[input_axis(unit)] = grid.scales.size
    factors: Floats = (grid.scales / grid.scales.mean()).reshape(shape).astype(np.float32)
    return factors
