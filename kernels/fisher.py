# SPDX-License-Identifier: Apache-2.0
"""Runs a network on samples, back from drawn losses, and keeps what the search of grids needs."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from qhyvit_onnx.kernels.evidence import Evidence
from qhyvit_onnx.kernels.executor import Executor, Hook, Hooks
from qhyvit_onnx.kernels.losses import ends_of, slope
from qhyvit_onnx.kernels.probes import Probes
from qhyvit_onnx.kernels.program import Array
from qhyvit_onnx.kernels.takers import GainTaker, LayerTaker, ProductTaker, Taker, TensorTaker

T = TypeVar("T")


def gather(
    executor: Executor,
    feeds: Iterable[Mapping[str, Array]],
    probes: Probes,
    *,
    samples: int,
    seed: int,
    tick: Callable[[int, int], None],
) -> Evidence:
    """Return the evidence that ``probes`` ask for, from the ``samples`` that ``feeds`` yields.

    Every sample is run once, and once back from the sum of the losses of all outputs: they are
    drawn independently, so squared gradients add up in expectation.

    Units:
        gains in squared units of loss over squared units of the tensor, for one sample.

    Error:
        one draw a sample: a single gain is as uncertain as it is large; sums of many are what it is
        for. Grams are summed in float32.

    Source:
        BRECQ, arXiv 2102.05426, and Q-HyViT, arXiv 2303.12557, with the losses of ``slope``.
    """
    tensors = {name: TensorTaker(name, axis, samples) for name, axis in probes.tensors.items()}
    layers = {unit: LayerTaker(probe, samples) for unit, probe in probes.layers.items()}
    products = {unit: ProductTaker(probe, samples) for unit, probe in probes.products.items()}
    gains = {name: GainTaker(name) for name in probes.gains}
    run = _Run(executor, [t for kind in (tensors, layers, products, gains) for t in kind.values()])
    for index, sample in enumerate(feeds):
        run.once(sample, np.random.default_rng((seed, index)))
        tick(index + 1, samples)
    return Evidence(
        tensors=_found((name, taker.evidence()) for name, taker in tensors.items()),
        layers=_found((unit, taker.evidence()) for unit, taker in layers.items()),
        products=_found((unit, taker.evidence()) for unit, taker in products.items()),
        gains=_found((name, taker.gain()) for name, taker in gains.items()),
        losses=run.losses,
        opaque=executor.opaque_ops,
    )


def _found(items: Iterable[tuple[str, T | None]]) -> dict[str, T]:
    return {name: item for name, item in items if item is not None}


class _Run:
    """One way forward and one way back, sample after sample, with takers on their tensors."""

    def __init__(self, executor: Executor, takers: Iterable[Taker]) -> None:
        self.losses: dict[str, str] = {}
        self._executor, self._ends = executor, ends_of(executor.program)
        self._takers: dict[str, list[Taker]] = defaultdict(list)
        for taker in takers:
            self._takers[taker.at].append(taker)
        self._kept = {name for found in self._takers.values() for t in found for name in t.reads}
        names = {*self._takers, *self._kept, *executor.program.inputs}
        self._watched = names & executor.program.names()

    def once(self, feeds: Mapping[str, Array], rng: np.random.Generator) -> None:
        """Run one sample."""
        seen: dict[str, Tensor] = {}
        hooks: Hooks = {name: self._hook(name, seen, rng) for name in self._watched}
        wanted = list(dict.fromkeys(end.tensor for end in self._ends.values()))
        values = self._executor.run(feeds, wanted, hooks=hooks)
        for output, end in self._ends.items():
            self.losses[output] = end.draw(values[end.tensor])
        pairs = [slope(end, values[end.tensor], rng) for end in self._ends.values()]
        starts = [pair for pair in pairs if pair is not None and pair[0].requires_grad]
        if starts:
            torch.autograd.backward([x for x, _ in starts], [back for _, back in starts])

    def _hook(self, name: str, seen: dict[str, Tensor], rng: np.random.Generator) -> Hook:
        """Return what watches the tensor ``name``; ``seen`` holds what later takers ask for."""
        takers = self._takers.get(name, [])

        def look(x: Tensor) -> Tensor:
            if not x.is_floating_point():
                return x
            if not x.requires_grad:  # an input, or what comes after an op without a kernel
                x = x.detach().requires_grad_()
            if name in self._kept:
                seen[name] = x.detach()
            for taker in takers:
                taker.see([seen[other] for other in taker.reads], x.detach(), rng)
            if takers:
                x.register_hook(lambda gradient: _pull(takers, gradient))  # type: ignore[no-untyped-call]
            return x

        return look


def _pull(takers: Iterable[Taker], gradient: Tensor) -> None:
    for taker in takers:
        taker.pull(gradient)
