# SPDX-License-Identifier: Apache-2.0
"""Teaches a net to answer as several others do together, whatever picture they are shown.

Source: Beyer et al. (CVPR 2022), "Knowledge distillation: A good teacher is patient and
consistent", arXiv 2106.05237: teacher and student see the very same mixed picture, for long.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses
from mixtures import UNKNOWN, Pictures, draw
from torch import Tensor, nn

from qhyvit_onnx.runtime import Options, Session

CLIP = 2.0
MEMORY = 500
"""Steps that the moving average looks back over; fewer as long as there are not ten times more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to teach."""

    batch: int = 64
    batches: int = 64
    """Batches of new pictures an epoch."""

    repeats: int = 3
    """Times an epoch shows each: to ask four teachers takes as long as to teach one student."""

    extra: float = 0.1
    """Share of drawn pictures that come from those without labels."""

    temperature: float = 2.0
    label_weight: float = 0.1
    rate: float = 2e-3
    warm_up: float = 0.05
    """Share of the time until the rate is at its peak; after it, half a cosine to nothing."""

    decay: float = 0.02


@dataclass(frozen=True, slots=True)
class Lesson:
    """Pictures, and what the teachers think: probabilities (N, classes) at the temperature."""

    pictures: Pictures
    answers: Tensor

    def batches(self, size: int) -> Iterator["Lesson"]:
        """Yield the lesson in parts of ``size``, in a new order."""
        for rows in torch.randperm(len(self.answers)).split(size):
            yield Lesson(self.pictures.take(rows), self.answers[rows])


class Teachers:
    """ONNX classifiers with one input, whose first outputs are logits (N, classes)."""

    def __init__(self, paths: Sequence[Path], threads: int) -> None:
        """Load the models."""
        self._sessions = [Session(path, Options(threads=threads)) for path in paths]

    def answer(self, x: Tensor, temperature: float) -> Tensor:
        """Return the mean of their probabilities, (N, classes), at ``temperature``."""
        feed, answers = x.numpy(), []
        for session in self._sessions:
            logits = session.run({session.inputs[0]: feed})[session.outputs[0]]
            answers.append((torch.from_numpy(logits) / temperature).softmax(dim=1))
        return torch.stack(answers).mean(0)


class Clock:
    """How much of the training is over: 0 to 1, by steps taken or by minutes passed."""

    def __init__(self, *, steps: int = 0, minutes: float = 0.0) -> None:
        """End after ``steps`` if there are any, else after ``minutes``."""
        self._steps, self._seconds = steps, 60 * minutes
        self._start = time.monotonic()

    def share(self, step: int) -> float:
        """Return the share that is over before ``step``."""
        if self._steps:
            return step / self._steps
        return (time.monotonic() - self._start) / self._seconds


def divergence(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """Return the mean over pictures of KL(answers || student), times temperature squared.

    Shapes: logits and answers (N, classes), answers being probabilities at ``temperature``.
    Units: nats. Source: Hinton et al. (2015), arXiv 1503.02531, section 2, for the square.
    """
    said = (logits / temperature).log_softmax(dim=1)
    return F.kl_div(said, answers, reduction="batchmean") * temperature**2


def loss_of(logits: Tensor, lesson: Lesson, recipe: Recipe) -> Tensor:
    """Return the divergence, and the cross entropy to the labels that there are."""
    loss = divergence(logits, lesson.answers, recipe.temperature)
    labels = lesson.pictures.y
    wrong = F.cross_entropy(logits, labels, ignore_index=UNKNOWN, reduction="sum")
    return loss + recipe.label_weight * wrong / (labels != UNKNOWN).sum().clamp_min(1)


def rate_at(share: float, recipe: Recipe) -> float:
    """Return the learning rate when ``share`` of the training is over."""
    if share < recipe.warm_up:
        return recipe.rate * share / recipe.warm_up
    rest = (min(share, 1.0) - recipe.warm_up) / (1 - recipe.warm_up)
    return recipe.rate * (1 + math.cos(math.pi * rest)) / 2


def prepare(labelled: Pictures, extra: Pictures, teachers: Teachers, recipe: Recipe) -> Lesson:
    """Return what one epoch teaches."""
    count = recipe.batch * recipe.batches
    strange = round(count * recipe.extra) if len(extra.y) else 0
    pictures = draw([(labelled, count - strange), (extra, strange)])
    parts = [teachers.answer(x, recipe.temperature) for x in pictures.x.split(recipe.batch)]
    return Lesson(pictures, torch.cat(parts))


def follow(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the weights and statistics of ``average`` a little towards those of ``model``."""
    part = 1 / min(MEMORY, 1 + step / 10)
    pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
    for mean, now in pairs:
        mean.copy_(mean.lerp(now, part) if mean.is_floating_point() else now)


def teach(
    model: nn.Module,
    average: nn.Module,
    prepared: Callable[[], Lesson],
    recipe: Recipe,
    clock: Clock,
) -> None:
    """Train ``model``; ``average`` becomes the moving average of its weights."""
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=recipe.decay)
    step, total = 0, 0.0
    while clock.share(step) < 1:
        lesson, first, total = prepared(), step, 0.0
        for rows in (rows for _ in range(recipe.repeats) for rows in lesson.batches(recipe.batch)):
            optimiser.param_groups[0]["lr"] = rate_at(clock.share(step), recipe)
            loss = loss_of(model(rows.pictures.x), rows, recipe)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            follow(average, model, step)
            step, total = step + 1, total + loss.item()
        print(
            f"{clock.share(step):4.0%}  step {step}  loss {total / (step - first):.3f}", flush=True
        )
