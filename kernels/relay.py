# SPDX-License-Identifier: Apache-2.0
"""Samples on their way through one block, from layer to layer."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from qhyvit_onnx.kernels.block_runs import Block, drawn, parts
from qhyvit_onnx.kernels.executor import Executor, Hooks
from qhyvit_onnx.kernels.sample_store import SampleStore


class Relay:
    """Gives tensors inside a block one after the other, each as the hooks are by then.

    What is alive before the step that writes a tensor is held: run from the start of the block for
    each of them, the time would grow with the square of their number.
    """

    def __init__(
        self,
        executor: Executor,
        block: Block,
        sources: Mapping[str, SampleStore],
        hooks: Hooks,
        *,
        samples: Sequence[int],
        batch: int,
        stops: Sequence[str],
    ) -> None:
        """Stand at the inputs of ``block``; ``stops`` are all tensors that will be asked for."""
        self._executor, self._hooks = executor, hooks
        size = batch if block.together else 1
        batches = list(parts(samples, size))
        self._counts = [len(part) for part in batches]
        self._held = [{**drawn(sources, part), **block.fixed} for part in batches]
        self._steps = executor.program.between(tuple(self._held[0]), stops).steps

    def reach(self, tensor: str) -> Iterator[Tensor]:
        """Yield ``tensor`` of every sample; no step that led to the one before may be led to again.

        The step that writes it is not gone past: what hooks do to it may still change.
        """
        places = {name: i for i, step in enumerate(self._steps) for name in step.outputs}
        if places[tensor]:
            self._advance(places[tensor])
        for held, count in zip(self._held, self._counts, strict=True):
            found = self._executor.run(held, (tensor,), hooks=self._hooks)[tensor]
            yield from found.tensor_split(count)

    def _advance(self, place: int) -> None:
        """Run all steps before ``place``, a place among those that are still to run."""
        done = {name for step in self._steps[:place] for name in step.outputs} | set(self._held[0])
        self._steps = self._steps[place:]
        read = dict.fromkeys(name for step in self._steps for name in step.reads)
        alive = tuple(name for name in read if name in done)
        self._held = [self._executor.run(held, alive, hooks=self._hooks) for held in self._held]
        self._hooks = {key: hook for key, hook in self._hooks.items() if key not in set(alive)}
