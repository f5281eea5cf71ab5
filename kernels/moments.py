# SPDX-License-Identifier: Apache-2.0
"""Means of channels over samples, and how much of a difference between two of them is chance."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Moments:
    """What the channels of a tensor hold over many samples."""

    means: Tensor
    """Of every sample by channel, (samples, C)."""
    square: float
    """Mean square of all elements."""

    @classmethod
    def of(cls, samples: Iterable[Tensor], axis: int) -> "Moments":
        """Return those of one tensor by sample, its channels on ``axis``."""
        means, squares = [], []
        for sample in samples:
            channels = sample.movedim(axis, -1)
            means.append(channels.reshape(-1, channels.shape[-1]).mean(0))
            squares.append(float(sample.square().mean()))
        return cls(torch.stack(means), sum(square / len(squares) for square in squares))

    @property
    def spread(self) -> float:
        """Standard deviation of all elements about the means of their channels."""
        return math.sqrt(max(self.square - float(self.means.mean(0).square().mean()), 0.0))

    def drift(self, wanted: "Moments") -> Tensor:
        """Return by how much channels lie above ``wanted``, the same samples, on average.

        A mean over n samples is off by its standard error s. What is returned for a difference d
        is ``d * max(0, 1 - s^2 / d^2)``: next to nothing where chance explains it, nearly d where
        it stands out. On samples not seen this is closer than d itself where most differences are
        chance, and hardly worse where none is.

        Shapes:
            result (C,).

        Source:
            the positive-part estimator of James and Stein (1961), one channel at a time.
        """
        apart = self.means - wanted.means
        mean = apart.mean(0)
        chance = apart.var(0) / len(apart) if len(apart) > 1 else mean.square()
        return mean * (1 - chance / mean.square().clamp(min=1e-30)).clamp(min=0)
