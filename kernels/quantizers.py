# SPDX-License-Identifier: Apache-2.0
"""Rounding to any grid as a hook for the executor, also to those that only a simulation has."""

from collections.abc import Mapping, Sequence
from functools import singledispatch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhyvit_onnx.grid import Grid
from qhyvit_onnx.kernels.executor import Executor, Hook, Hooks
from qhyvit_onnx.kernels.fake_quant import fake_quantize
from qhyvit_onnx.kernels.ops.dtypes import array_of
from qhyvit_onnx.kernels.program import Array
from qhyvit_onnx.simulated import ChannelGrid, LogGrid, TwinGrid


@singledispatch
def quantizer(grid: Grid | ChannelGrid | LogGrid | TwinGrid) -> Hook:
    """Return the function that rounds a tensor of floats to ``grid``, on the device of the tensor.

    Source:
        the formulas in the docstrings of the grids; ``fake`` of each is the same in numpy.
    """
    raise TypeError(grid)


def constant(array: NDArray[np.float32]) -> Hook:
    """Return the function that puts ``array`` in the place of whatever is read."""
    held = torch.from_numpy(np.ascontiguousarray(array))

    def give(x: Tensor) -> Tensor:
        return held.to(x.device)

    return give


@quantizer.register
def _(grid: Grid) -> Hook:
    scale = torch.tensor(np.float32(grid.scale))

    def round_(x: Tensor) -> Tensor:
        return fake_quantize(x, scale.to(x.device), grid.zero_point, 0, grid.top)

    return round_


@quantizer.register
def _(grid: ChannelGrid) -> Hook:
    scales, zeros = torch.from_numpy(grid.scales), torch.from_numpy(grid.zero_points)

    def round_(x: Tensor) -> Tensor:
        step, zero = scales.to(x.device), zeros.to(x.device)
        return fake_quantize(x, step, zero, 0, grid.top, axis=grid.axis)

    return round_


@quantizer.register
def _(grid: LogGrid) -> Hook:
    def round_(x: Tensor) -> Tensor:
        steps = -torch.log2(x.clamp(min=0) / grid.scale) * grid.octave  # infinite where x is 0
        codes = torch.round(steps).clamp(min=0)
        powers = torch.exp2(-codes / grid.octave)
        return torch.where(codes < 1 << grid.bits, grid.scale * powers, 0.0)

    return round_


@quantizer.register
def _(grid: TwinGrid) -> Hook:
    def round_(x: Tensor) -> Tensor:
        step = torch.where(x < grid.split, grid.below, grid.above)
        return torch.round(x / step).clamp(-grid.limit, grid.limit) * step

    return round_


def run_rounded(
    executor: Executor, feeds: Mapping[str, Array], wanted: Sequence[str], hooks: Hooks
) -> dict[str, Array]:
    """Return the tensors ``wanted`` as arrays, without gradients."""
    with torch.no_grad():
        found = executor.run(feeds, wanted, hooks=hooks)
    return {name: array_of(tensor, name) for name, tensor in found.items()}
