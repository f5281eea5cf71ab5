# SPDX-License-Identifier: Apache-2.0
"""Random losses whose squared gradients tell, in expectation, what errors cost at the outputs.

The distance of a network to itself will not do: at distance zero its gradient is zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from qhyvit_onnx.kernels.program import Program, Step


class Draw(StrEnum):
    """How the loss of one output is drawn."""

    CLASS = "a class drawn from its own softmax"
    YES_OR_NO = "yes or no drawn from its own sigmoid"
    SIGNS = "random signs"
    NONE = "none: it holds no floats"


@dataclass(frozen=True, slots=True)
class End:
    """Where the loss of an output is taken: at the output, or before its last nonlinearity."""

    tensor: str
    closing: Step | None = None
    """The Softmax, LogSoftmax or Sigmoid behind ``tensor``."""
    opset: int = 13

    def draw(self, x: Tensor) -> Draw:
        """Return which loss suits ``x``, the value of ``tensor``."""
        if not x.is_floating_point():
            return Draw.NONE
        if self.closing is not None:
            return Draw.YES_OR_NO if self.closing.op == "Sigmoid" else Draw.CLASS
        return Draw.CLASS if x.ndim == 2 and x.shape[1] > 1 else Draw.SIGNS

    def classes_last(self, x: Tensor) -> Tensor:
        """Return ``x`` with the classes of one decision along the last axis."""
        if self.closing is None:
            return x
        if self.opset < 13:  # Softmax-11: all axes from this one on are one
            return x.flatten(int(self.closing.attrs.get("axis", 1)) % x.ndim)
        return x.movedim(int(self.closing.attrs.get("axis", -1)), -1)


def ends_of(program: Program) -> Mapping[str, End]:
    """Return where the loss of every output is taken."""
    return {
        output: End(output) if step is None else End(step.inputs[0], step, program.opset)
        for output, step in program.closings().items()
    }


def slope(end: End, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor] | None:
    """Return a view of ``x`` and the gradient of a loss there; None where there are no floats.

    Classes: the loss is ``-log p`` of a class drawn from ``p = softmax(x)``, for every decision on
    its own; its gradient is ``p - onehot``. The expectation of the squared gradient of any tensor
    is the diagonal of the true Fisher matrix, which is the Gauss-Newton part of the Hessian of the
    distance ``KL(p || p')`` to an output p' that errors have moved. The sigmoid is the same with
    two classes. Other outputs: the inner product with random signs; the expectation is
    ``diag(J^T J)``, the squared distance of the output.

    Shapes:
        both results: the shape of ``x`` with the classes last, when there are classes.

    Source:
        true Fisher against empirical Fisher: Kunstner et al., arXiv 1905.12558; random signs:
        Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990.
    """
    match end.draw(x):
        case Draw.CLASS:
            scores = end.classes_last(x)
            return scores, _class_slope(scores.detach(), rng)
        case Draw.YES_OR_NO:
            chance = x.detach().sigmoid()
            return x, chance - (_uniform(x.shape, x, rng) < chance).to(x.dtype)
        case Draw.SIGNS:
            signs = 2 * rng.integers(0, 2, tuple(x.shape)).astype(np.int8) - 1
            return x, torch.from_numpy(signs).to(x)
    return None


def _class_slope(scores: Tensor, rng: np.random.Generator) -> Tensor:
    """Return softmax minus one-hot of the drawn classes.

    Shapes:
        scores and result (..., classes).
    """
    chances = scores.double().softmax(-1)
    drawn = _uniform((*scores.shape[:-1], 1), chances, rng)
    label = (chances.cumsum(-1) < drawn).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    return chances.scatter_add(-1, label, -torch.ones_like(drawn)).to(scores.dtype)


def _uniform(shape: tuple[int, ...], like: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(np.asarray(rng.random(tuple(shape)))).to(like)
