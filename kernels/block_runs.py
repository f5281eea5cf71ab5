# SPDX-License-Identifier: Apache-2.0
"""Runs one block of a network on samples that lie in stores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhyvit_onnx.kernels.executor import Executor, Hooks
from qhyvit_onnx.kernels.sample_store import SampleStore


@dataclass(frozen=True, slots=True)
class Block:
    """One block: what it reads and writes, and where its samples lie."""

    outputs: tuple[str, ...]
    floats: Mapping[str, SampleStore]
    """Inputs as the float network gives them."""
    rounded: Mapping[str, SampleStore]
    """Inputs as the quantized network before this block gives them."""
    targets: Mapping[str, SampleStore]
    """Outputs of the float block on float inputs."""
    costs: Mapping[str, Tensor]
    """By output: what a squared error costs there, broadcast to it."""
    fixed: Mapping[str, Tensor]
    """Inputs that are the same for every sample."""
    axes: Mapping[str, int]
    """Where the channels of an output lie, as far as is known."""
    together: bool
    """Whether several samples can run as one batch."""


def drawn(stores: Mapping[str, SampleStore], part: Sequence[int]) -> dict[str, Tensor]:
    """Return the samples of ``part`` from every store."""
    return {name: store.pick(part) for name, store in stores.items()}


def run(
    executor: Executor, feeds: Mapping[str, Tensor], block: Block, hooks: Hooks, count: int
) -> dict[str, Tensor]:
    """Return the outputs of ``block`` for ``count`` samples, one after the other."""
    if block.together or count == 1:
        return executor.run({**feeds, **block.fixed}, block.outputs, hooks=hooks)
    split = {name: tensor.tensor_split(count) for name, tensor in feeds.items()}
    found = [
        executor.run(
            {name: pieces[i] for name, pieces in split.items()} | dict(block.fixed),
            block.outputs,
            hooks=hooks,
        )
        for i in range(count)
    ]
    return {name: torch.cat([item[name] for item in found]) for name in block.outputs}


def parts(samples: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield ``samples`` in order, ``size`` at a time."""
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def fill(
    executor: Executor,
    block: Block,
    sources: Mapping[str, SampleStore],
    stores: Mapping[str, SampleStore],
    *,
    hooks: Hooks,
    batches: Iterator[Sequence[int]],
) -> dict[str, Tensor]:
    """Append the outputs of ``block`` to ``stores``; return their mean squares by channel.

    Shapes:
        a mean square is broadcast against its output: one axis of C where the channels are known.
    """
    energy: dict[str, Tensor] = {}
    count = 0
    with torch.no_grad():
        for part in batches:
            found = run(executor, drawn(sources, part), block, hooks, len(part))
            for name, out in found.items():
                for piece in out.tensor_split(len(part)):
                    stores[name].append(piece)
                square = _mean_square(out, block.axes.get(name))
                energy[name] = square * len(part) + energy.get(name, 0.0)
            count += len(part)
    return {name: total / count for name, total in energy.items()}


def costs_of(
    energy: Mapping[str, Tensor], gains: Mapping[str, NDArray[np.float32]]
) -> dict[str, Tensor]:
    """Return what a squared error costs at every output: 1 in all for errors as large as it.

    Shapes:
        gains (C,), by output; an output without one costs the same in all channels.
    """
    costs = {}
    for name, square in energy.items():
        known = gains.get(name)
        if known is None or known.size != square.numel():
            costs[name] = torch.full_like(square, 1 / max(float(square.mean()), 1e-30))
        else:
            costs[name] = torch.from_numpy(known).reshape(square.shape).to(square.device)
    total = sum(float((costs[name] * energy[name]).mean()) for name in energy)
    return {name: cost / max(total, 1e-30) for name, cost in costs.items()}


def _mean_square(out: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return out.square().mean()
    others = [i for i in range(out.ndim) if i != axis % out.ndim]
    square: Tensor = out.square().mean(dim=others, keepdim=True) if others else out.square()
    return square
