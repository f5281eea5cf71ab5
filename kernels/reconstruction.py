# SPDX-License-Identifier: Apache-2.0
"""Learns how one block of a network rounds, so that its outputs stay what they were in float.

Source:
    the objective is BRECQ's (Li et al. 2021, arXiv 2102.05426, eq. 10: squared error of a block's
    output), the rounding AdaRound's (arXiv 2004.10568), the mixed inputs and dropped rounding
    QDrop's (Wei et al. 2022, arXiv 2203.05740).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from qhyvit_onnx.kernels.block_runs import Block, drawn, parts, run
from qhyvit_onnx.kernels.dropping import mixed, random_mask
from qhyvit_onnx.kernels.executor import Executor, Hooks
from qhyvit_onnx.kernels.moments import Moments
from qhyvit_onnx.kernels.relay import Relay
from qhyvit_onnx.kernels.rounding import BiasShift, LearnedScale, SoftRounding
from qhyvit_onnx.kernels.sample_store import SampleStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long a block is learned, and how fast."""

    steps: int
    batch: int = 32
    """Samples a step, at most."""
    elements: int = 4 << 20
    """Of all tensors of the block in a step, about at most: large maps teach with few samples."""
    rounding_rate: float = 2e-2
    """Of Adam, in units of the sigmoid's argument; 0 keeps the codes."""
    scale_rate: float = 2e-3
    """Relative to the scale."""
    bias_rate: float = 2e-2
    """In units of ``SMALL`` standard deviations of what the layer writes."""
    dropped: float = 0.5
    """Share of elements that keep their float value in a step: of the inputs, and at grids."""
    pull: float = 0.05
    """Weight of what makes every element decide for a code."""
    warm: float = 0.2
    """Share of the steps before it sets in."""
    checks: int = 5
    """How often the held-out error is looked at; learning stops when two in a row find it worse
    than the best."""


SMALL = 0.05
"""Change of a bias that counts as small, in standard deviations of what the layer writes."""

UNHEARD = 1e-6
"""Cost below which differences no longer count: 60 dB below the signal."""

PATIENCE = 2
"""Checks without a better held-out error after which a block stops learning."""


Learnable: TypeAlias = SoftRounding | LearnedScale | BiasShift


class Channels(NamedTuple):
    """The channels of a tensor."""

    tensor: str
    axis: int


@dataclass(frozen=True, slots=True)
class Learnables:
    """What may change in one block, with the hooks that make readers see it."""

    hooks: Hooks
    roundings: Mapping[str, SoftRounding]
    scales: Mapping[str, LearnedScale]
    biases: Mapping[str, BiasShift]
    sums: Mapping[str, Channels]
    """By layer that has a bias, in the order they run: that to which it has been added."""

    def settle(self, *, hard: bool) -> None:
        """Let readers see what will be emitted, or what is being learned."""
        for rounding in self.roundings.values():
            rounding.settled = hard

    def drop(self, share: float) -> None:
        """Let readers see ``share`` of the activations unrounded."""
        for scale in self.scales.values():
            scale.dropped = share

    def state(self) -> list[Tensor]:
        """Return a copy of everything learned."""
        return [item.learned.detach().clone() for item in self._items()]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Go back to a copy."""
        with torch.no_grad():
            for item, kept in zip(self._items(), state, strict=True):
                item.learned.copy_(kept)

    def _items(self) -> list[Learnable]:
        return [*self.roundings.values(), *self.scales.values(), *self.biases.values()]


class Lesson:
    """One block being learned on some samples and judged on others."""

    def __init__(
        self, executor: Executor, block: Block, learnables: Learnables, schedule: Schedule
    ) -> None:
        """Nothing is learned yet."""
        self._executor, self._block = executor, block
        self._learnables, self._schedule = learnables, schedule
        self._exact: dict[tuple[int, ...], dict[str, Moments]] = {}

    def error(self, samples: Sequence[int]) -> float:
        """Return the cost of the block as it would be emitted, geometric mean over ``samples``.

        Few samples judge, and in a plain mean the one with the largest error would decide alone.
        """
        return float(self.log_errors(samples).mean().exp())

    def log_errors(self, samples: Sequence[int]) -> Tensor:
        """Return the logarithm of the cost of every one of ``samples``, as it would be emitted.

        Shapes:
            result (samples,).
        """
        self._learnables.settle(hard=True)
        with torch.no_grad():
            costs = [
                self._costs(drawn(self._block.rounded, part), part)
                for part in parts(samples, self._schedule.batch)
            ]
            return (torch.cat(costs) + UNHEARD).log()

    def correct(self, train: Sequence[int], held: Sequence[int], best: float) -> float:
        """Correct the biases in closed form, layer by layer; return the error on ``held``.

        Kept only where it is below ``best``. What is corrected is the mean of the whole error of a
        layer's output, of its own rounding and of everything before it, as far as it is not chance.

        Source:
            Nagel et al. (2019), "Data-free quantization through weight equalization and bias
            correction", arXiv 1906.04721, section 4.2.
        """
        held_biases = self._learnables.biases
        self._learnables.settle(hard=True)
        with torch.no_grad():
            wanted = self._wanted(train)
            for name, moments in wanted.items():
                held_biases[name].rescale(max(SMALL * moments.spread, 1e-12))
            kept = self._learnables.state()
            for name, got in self._moments(self._block.rounded, self._learnables.hooks, train):
                held_biases[name].correct(got.drift(wanted[name]))
        found = self.error(held)
        if found < best:
            return found
        self._learnables.restore(kept)
        return best

    def learn(self, train: Sequence[int], held: Sequence[int], seed: int, best: float) -> float:
        """Learn on ``train``; return the error on ``held``, which never rises above ``best``.

        What is kept is the best seen at a check, or what was there before.
        """
        schedule, kept, worse = self._schedule, self._learnables.state(), 0
        torch.manual_seed(seed)
        draw = np.random.default_rng(seed)
        optimizer = self._optimizer()
        cooling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(schedule.steps, 1))
        due = {schedule.steps * (i + 1) // schedule.checks for i in range(schedule.checks)}
        for step in range(schedule.steps):
            size = min(schedule.batch, len(train))
            self._step(optimizer, draw.choice(train, size, replace=False).tolist(), step)
            cooling.step()
            if step + 1 in due:
                found = self.error(held)
                worse = 0 if found < best else worse + 1
                if found < best:
                    best, kept = found, self._learnables.state()
                if worse > PATIENCE:
                    break
        self._learnables.restore(kept)
        self._learnables.settle(hard=True)
        return best

    def _step(self, optimizer: torch.optim.Optimizer, part: Sequence[int], step: int) -> None:
        self._learnables.settle(hard=not self._schedule.rounding_rate)
        self._learnables.drop(self._schedule.dropped)
        loss = self._costs(self._mixed(part), part).mean() + self._pull(step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        self._learnables.drop(0.0)

    def _optimizer(self) -> torch.optim.Optimizer:
        held, schedule = self._learnables, self._schedule
        groups: list[tuple[Mapping[str, Learnable], float]] = [
            (held.roundings, schedule.rounding_rate),
            (held.scales, schedule.scale_rate),
            (held.biases, schedule.bias_rate),
        ]
        return torch.optim.Adam([
            {"params": [item.learned for item in items.values()], "lr": rate}
            for items, rate in groups
            if items and rate
        ])  # fmt: skip

    def _mixed(self, part: Sequence[int]) -> dict[str, Tensor]:
        """Return inputs in which a share of the elements is as in the float network."""
        rounded = drawn(self._block.rounded, part)
        if not self._schedule.dropped:
            return rounded
        exact = drawn(self._block.floats, part)
        share = self._schedule.dropped
        return {name: mixed(x, exact[name], random_mask(x, share)) for name, x in rounded.items()}

    def _costs(self, feeds: Mapping[str, Tensor], part: Sequence[int]) -> Tensor:
        """Return what the errors of every sample cost, (samples,)."""
        found = run(self._executor, feeds, self._block, self._learnables.hooks, len(part))
        total = torch.zeros(len(part))
        for name, out in found.items():
            error = out - self._block.targets[name].pick(part).to(out.device)
            weighted = error.square() * self._block.costs[name]
            total = total.to(out.device) + weighted.reshape(len(part), -1).mean(1)
        return total

    def _pull(self, step: int) -> Tensor | float:
        """Return what it costs that elements lie between codes; sharper with every step."""
        schedule, roundings = self._schedule, self._learnables.roundings.values()
        passed = (step / schedule.steps - schedule.warm) / (1 - schedule.warm)
        if passed <= 0 or not roundings or not schedule.rounding_rate:
            return 0.0
        sharpness = 2 + 18 * 0.5 * (1 + math.cos(math.pi * passed))
        count = sum(item.learned.numel() for item in roundings)
        undecided = torch.stack([item.undecided(sharpness) for item in roundings]).sum()
        return schedule.pull * undecided / count

    def _wanted(self, samples: Sequence[int]) -> dict[str, Moments]:
        """Return by layer what its channels hold in float, computed once."""
        key = tuple(samples)
        if key not in self._exact:
            self._exact[key] = dict(self._moments(self._block.floats, {}, samples))
        return self._exact[key]

    def _moments(
        self, sources: Mapping[str, SampleStore], hooks: Hooks, samples: Sequence[int]
    ) -> Iterator[tuple[str, Moments]]:
        """Yield by layer what the channels it writes hold, each as ``hooks`` are by then."""
        sums = self._learnables.sums
        relay = Relay(
            self._executor, self._block, sources, hooks,
            samples=samples, batch=self._schedule.batch, stops=[at.tensor for at in sums.values()],
        )  # fmt: skip
        for name, at in sums.items():
            yield name, Moments.of(relay.reach(at.tensor), at.axis)
