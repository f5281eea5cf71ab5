# SPDX-License-Identifier: Apache-2.0
"""A stretch of a network that is run again and again, rounded in ever other ways."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.kernels.executor import Executor, Hooks
from qhyvit_onnx.kernels.program import Array


class Segment:
    """A stretch, what enters it on some samples, and what leaves it in floats."""

    def __init__(
        self,
        executor: Executor,
        seen: Sequence[Mapping[str, Tensor]],
        inputs: Sequence[str],
        gains: Mapping[str, float],
    ) -> None:
        """Pick what the stretch reads and writes from ``seen``, which ``record`` returned.

        ``gains``: by name of each tensor that leaves the stretch, what a squared error there costs.
        """
        self._executor, self._gains = executor, gains
        self._feeds = [{name: found[name] for name in inputs} for found in seen]
        self._targets = [{name: found[name] for name in gains} for found in seen]

    def cost(self, hooks: Hooks) -> float:
        """Return what the errors of the outputs cost, rounded as ``hooks`` say."""
        total = 0.0
        with torch.no_grad():
            for feeds, targets in zip(self._feeds, self._targets, strict=True):
                found = self._executor.run(feeds, tuple(targets), hooks=hooks)
                for name, target in targets.items():
                    total += self._gains[name] * _squared(found[name], target)
        return total


def record(
    executor: Executor, samples: Sequence[Mapping[str, Array]], names: Sequence[str]
) -> list[dict[str, Tensor]]:
    """Return the tensors ``names`` of the network on ``samples``, in one batch if it takes one."""
    with torch.no_grad():
        return [executor.run(batch, names) for batch in _batches(executor, samples)]


def _squared(found: Tensor, target: Tensor) -> float:
    return float((found - target).square().sum())


def _batches(
    executor: Executor, samples: Sequence[Mapping[str, Array]]
) -> Sequence[Mapping[str, Array | Tensor]]:
    """Return the samples as one batch, or one by one where that is not the same."""
    if len(samples) < 2:
        return list(samples)
    joined = {
        name: torch.cat([torch.from_numpy(sample[name]) for sample in samples])
        for name in samples[0]
        if all(
            sample[name].ndim and sample[name].shape == samples[0][name].shape for sample in samples
        )
    }
    if len(joined) < len(samples[0]):
        return list(samples)
    outputs = executor.program.outputs
    try:
        with torch.no_grad():
            together = executor.run(joined, outputs)
            alone = executor.run(samples[-1], outputs)
    except ModelError:  # a shape that says how many samples there are
        return list(samples)
    return [joined] if all(_ends_with(together[n], alone[n]) for n in outputs) else list(samples)


def _ends_with(together: Tensor, alone: Tensor) -> bool:
    """Tell whether the last sample of a batch is the sample alone."""
    if not together.ndim or together.shape[1:] != alone.shape[1:]:
        return False
    last = together[-alone.shape[0] :]
    close = 1e-3 * float(alone.abs().max())
    return together.shape != alone.shape and float((last - alone).abs().max()) <= close
