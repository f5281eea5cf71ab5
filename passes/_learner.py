# SPDX-License-Identifier: Apache-2.0
"""Walks the network block by block: each learns on what the quantized blocks before it give."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from qhyvit_onnx.data import Feed
from qhyvit_onnx.facts import Grids
from qhyvit_onnx.kernels.block_runs import Block, costs_of, fill, parts
from qhyvit_onnx.kernels.executor import Executor
from qhyvit_onnx.kernels.reconstruction import Learnables, Lesson, Schedule
from qhyvit_onnx.kernels.sample_store import Memory, SampleStore
from qhyvit_onnx.passes._blocks import Span
from qhyvit_onnx.passes._learned import Learned, Network

SEEN = 6 << 30
"""Elements of all tensors that the network as a whole is shown, about at most, in all its steps:
it bounds the time that networks on large images take."""

CORRECTING = 16
"""Batches that correct the biases of a block, at most: every layer takes a run. Batches are small
where maps are large, and there a few images tell the mean of a channel."""

HELD_OUT, JUDGES = 4, 32
"""One sample in so many judges what the others taught; so many samples, about at most."""


def held_out(count: int) -> list[int]:
    """Return which of ``count`` samples judge; none where there are too few to spare any."""
    return list(range(0, count, max(HELD_OUT, count // JUDGES))) if count >= 2 * HELD_OUT else []


@dataclass(frozen=True, slots=True)
class Progress:
    """What came of one block, or of the whole network at the end."""

    layers: int
    before: float
    corrected: float
    after: float
    """Error of held-out samples at the outputs, relative to the signal: as searched, with
    corrected biases, and learned."""
    steps: int
    """Steps of descent, at most: fewer than asked for where samples are large."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Error of held-out samples at the outputs of the network, relative to the signal."""

    searched: float
    learned: float
    doubt: float
    """Standard error of the logarithm of their ratio."""

    @property
    def kept(self) -> bool:
        """Whether what was learned is used: unless it is worse by more than chance.

        Every block was found better on its own; a handful of samples that scatter is no reason to
        throw that away.
        """
        return math.log(self.learned / self.searched) <= self.doubt


class Walk:
    """One way through the network."""

    def __init__(
        self, network: Network, samples: Sequence[Feed], schedule: Schedule, memory: Memory
    ) -> None:
        """Stand at the inputs."""
        self._network, self._schedule, self._memory = network, schedule, memory
        self._samples = samples
        self._learned = Learned(network)
        self._floats = self._inputs()
        self._rounded = dict(self._floats)
        count = len(samples)
        self._held = held_out(count)
        self._train = [i for i in range(count) if i not in set(self._held)]

    def learn(self, spans: Sequence[Span], seed: int) -> Iterator[Progress]:
        """Learn block by block; yield what came of each that has layers."""
        for index, span in enumerate(spans):
            schedule = self._fitting(span, self._schedule)
            learnables = self._learned.inside(span)
            block = self._block(span, schedule.batch)
            if learnables.roundings:
                yield self._teach(
                    Lesson(self._executor, block, learnables, schedule),
                    learnables,
                    schedule,
                    seed + index,
                )
            self._advance(span, block, learnables, schedule.batch, spans[index + 1 :])

    def finish(self, schedule: Schedule, seed: int) -> Progress:
        """Learn all scales and biases together, on the outputs of the network."""
        learnables = self._learned.everything()
        schedule = self._fitting(self._whole, schedule)
        seen = schedule.batch * self._elements(self._whole)
        schedule = replace(schedule, steps=min(schedule.steps, max(1, SEEN // max(seen, 1))))
        lesson = Lesson(self._executor, self._network_as_block, learnables, schedule)
        train, judges = self._train, self._judges
        before = lesson.error(judges)  # blocks have corrected their biases on what comes before
        after = lesson.learn(train, judges, seed, before)
        after = lesson.correct(train[: CORRECTING * schedule.batch], judges, after)
        return Progress(len(learnables.roundings), before, before, after, schedule.steps)

    def judge(self) -> Verdict:
        """Go back to what was searched if all that was learned harms the outputs.

        Each block was judged by itself; errors that cancelled between blocks may do so no longer.
        """
        fresh = Learned(self._network)
        both = fresh.inside(self._whole), self._learned.everything()
        schedule = self._fitting(self._whole, self._schedule)
        searched, learned = (
            Lesson(self._executor, self._network_as_block, item, schedule).log_errors(self._judges)
            for item in both
        )
        doubt = float((learned - searched).std()) / math.sqrt(len(self._judges))
        verdict = Verdict(float(searched.mean().exp()), float(learned.mean().exp()), doubt)
        if not verdict.kept:
            self._learned = fresh
        return verdict

    def grids(self) -> Grids:
        """Return the grids with everything learned so far."""
        return self._learned.grids()

    @property
    def _executor(self) -> Executor:
        return self._network.executor

    def _teach(
        self, lesson: Lesson, learnables: Learnables, schedule: Schedule, seed: int
    ) -> Progress:
        """Correct the biases, learn, correct again: each step is kept where it helps."""
        train, judges = self._train, self._judges
        some = train[: CORRECTING * schedule.batch]
        before = lesson.error(judges)
        corrected = after = lesson.correct(some, judges, before)
        if schedule.steps:
            after = lesson.learn(train, judges, seed, corrected)
            after = lesson.correct(some, judges, after)
        return Progress(len(learnables.roundings), before, corrected, after, schedule.steps)

    @property
    def _judges(self) -> list[int]:
        return self._held or self._train

    @cached_property
    def _whole(self) -> Span:
        program, seen = self._executor.program, self._network.passing
        outputs = tuple(name for name in seen.ends if name not in seen.fixed)
        return Span(0, len(program.steps) - 1, program.inputs, outputs, ())

    @cached_property
    def _network_as_block(self) -> Block:
        self._floats = self._inputs()
        self._rounded = dict(self._floats)
        return self._block(self._whole, self._fitting(self._whole, self._schedule).batch)

    def _inputs(self) -> dict[str, SampleStore]:
        stores = {name: SampleStore(self._memory) for name in self._samples[0]}
        for feed in self._samples:
            for name, store in stores.items():
                store.append_array(feed[name])
        return stores

    def _fitting(self, span: Span, schedule: Schedule) -> Schedule:
        """Return the schedule with as many samples a step as its elements allow."""
        fits = max(1, schedule.elements // max(self._elements(span), 1))
        return replace(schedule, batch=min(schedule.batch, fits, len(self._samples)))

    def _elements(self, span: Span) -> int:
        """Return how many elements all tensors of a block have for one sample."""
        steps = self._executor.program.steps[span.first : span.last + 1]
        sizes = self._network.passing.elements
        return sum(sizes.get(name, 0) for step in steps for name in step.outputs)

    def _block(self, span: Span, batch: int) -> Block:
        fixed, axes = self._network.passing.fixed, self._network.axes
        carried = [name for name in span.inputs if name not in fixed]
        block = Block(
            outputs=span.outputs,
            floats={name: self._floats[name] for name in carried},
            rounded={name: self._rounded[name] for name in carried},
            targets={name: SampleStore(self._memory) for name in span.outputs},
            costs={},
            fixed={name: fixed[name] for name in span.inputs if name in fixed},
            axes={name: axes[name] for name in span.outputs if name in axes},
            together=self._network.passing.together,
        )
        executor, batches = self._executor, parts(range(len(self._samples)), batch)
        energy = fill(executor, block, block.floats, block.targets, hooks={}, batches=batches)
        return replace(block, costs=costs_of(energy, self._network.gains))

    def _advance(
        self,
        span: Span,
        block: Block,
        learnables: Learnables,
        batch: int,
        ahead: Sequence[Span],
    ) -> None:
        """Compute what the next blocks read, and forget what none of them does."""
        learnables.settle(hard=True)
        rounded = {name: SampleStore(self._memory) for name in span.outputs}
        batches = parts(range(len(self._samples)), batch)
        hooks = learnables.hooks
        fill(self._executor, block, block.rounded, rounded, hooks=hooks, batches=batches)
        self._floats |= block.targets
        self._rounded |= rounded
        needed = {name for later in ahead for name in later.inputs}
        for name in [name for name in self._floats if name not in needed]:
            stores = {id(s): s for s in (self._floats.pop(name), self._rounded.pop(name))}
            for store in stores.values():
                store.close()
