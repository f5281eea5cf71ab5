# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a program can be kept sample by sample, found out by running it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.kernels.executor import Executor, Hook
from qhyvit_onnx.kernels.program import Array, Program

CLOSE = 1e-3
"""Difference, as a fraction of the largest value, up to which a sample counts as the same in a
batch: sums in another order may differ so much, samples that mix differ more."""


@dataclass(frozen=True, slots=True)
class Passing:
    """What was found out."""

    together: bool
    """Whether several samples can run as one batch, one after the other along the first axis."""
    portable: frozenset[str]
    """Tensors of floats that a batch holds sample by sample along the first axis."""
    fixed: Mapping[str, Tensor]
    """Tensors that are the same whatever the sample."""
    elements: Mapping[str, int]
    """Elements of every tensor for one sample."""
    ends: tuple[str, ...]
    """Outputs of the program; in place of one that holds no floats, those it is computed from."""


def passing(executor: Executor, first: Mapping[str, Array], second: Mapping[str, Array]) -> Passing:
    """Run a sample alone and with another; compare every tensor."""
    names = [name for step in executor.program.steps for name in step.outputs if name]
    with torch.no_grad():
        alone = executor.run(first, [*first, *names])
        ends = _ends(executor.program, {n for n, x in alone.items() if x.is_floating_point()})
        together = all(np.ndim(array) for array in first.values())
        try:
            both = {name: np.concatenate([first[name], second[name]]) for name in first}
            portable, fixed = _compare(executor, both, alone, batched=2)
            together = all(name in portable or name in fixed for name in ends)
        except (ModelError, ValueError):  # shapes that say how many samples there are
            together = False
        if not together:
            portable, fixed = _compare(executor, second, alone, batched=1)
    sizes = {name: tensor.numel() for name, tensor in alone.items()}
    return Passing(together, frozenset(portable), fixed, sizes, ends)


def _ends(program: Program, floats: Collection[str]) -> tuple[str, ...]:
    """Return the outputs, and for those that are no ``floats`` the nearest before that are."""
    makers = {name: step for step in program.steps for name in step.outputs}
    found: dict[str, None] = {}
    ahead = list(program.outputs)
    for name in ahead:
        if name in floats:
            found[name] = None
        elif name in makers:
            ahead += [read for read in makers[name].reads if read not in ahead]
    return tuple(found)


def _compare(
    executor: Executor, feeds: Mapping[str, Array], alone: Mapping[str, Tensor], *, batched: int
) -> tuple[set[str], dict[str, Tensor]]:
    """Return what can be kept, and what never changes; tensors are compared as they appear."""
    portable: set[str] = set()
    fixed: dict[str, Tensor] = {}

    def look(name: str, found: Tensor) -> Tensor:
        want = alone[name]
        if found.shape == want.shape and torch.equal(found, want):
            fixed[name] = found
        elif _holds(found, want, batched):
            portable.add(name)
        return found

    hooks: dict[str | tuple[str, int], Hook] = {name: partial(look, name) for name in alone}
    executor.run(feeds, executor.program.outputs, hooks=hooks)
    return portable, fixed


def _holds(found: Tensor, want: Tensor, batched: int) -> bool:
    """Tell whether the first sample of ``found`` is ``want``."""
    if not (want.is_floating_point() and found.ndim and want.ndim):
        return False
    if found.shape != (batched * want.shape[0], *want.shape[1:]):
        return False
    if batched == 1:
        return True
    gap = (found[: want.shape[0]] - want).abs().max() if want.numel() else 0.0
    return bool(gap <= CLOSE * want.abs().max()) if want.numel() else True
