# SPDX-License-Identifier: Apache-2.0
"""What a rounded operand does to the output of a layer or product, at places that were drawn."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.kernels.evidence import LayerEvidence, ProductEvidence

Floats = NDArray[np.float32]

TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A batch of matrix products: one for each group of a layer, or each matrix of a product.

    Shapes:
        left (S, M, K), right (S, K, N), gains and target (S, M, N); offset (S, 1, N), added to
        the output.

    Units:
        gains are squared gradients of the loss: an output error e costs ``sum gains * e ** 2``.
    """

    left: Floats
    right: Floats
    gains: Floats
    offset: Floats
    target: Floats

    @classmethod
    def of_layer(cls, evidence: LayerEvidence, right: Floats, bias: Floats | None) -> "Scene":
        """Return the scene of a layer.

        Shapes:
            right (groups, K, C_out / groups); bias (C_out,).
        """
        left = np.ascontiguousarray(evidence.rows.transpose(1, 0, 2))
        groups, columns = right.shape[0], right.shape[2]
        gains = evidence.gains.reshape(-1, groups, columns).transpose(1, 0, 2)
        offset = np.zeros((groups, 1, columns), np.float32)
        if bias is not None:
            offset += np.broadcast_to(bias.reshape(-1), (groups * columns,)).reshape(offset.shape)
        return cls(left, right, gains, offset, np.matmul(left, right))

    @classmethod
    def of_product(cls, evidence: ProductEvidence) -> "Scene":
        """Return the scene of a product of two activations."""
        left, right = evidence.left, evidence.right
        offset = np.zeros((1, 1, 1), np.float32)
        return cls(left, right, evidence.gains, offset, np.matmul(left, right))

    def squared(self, left: Floats, right: Floats) -> NDArray[np.float64]:
        """Return what the errors of every column cost with rounded operands, (S, N).

        Source:
            Hessian guided metric, PTQ4ViT, arXiv 2111.12293; Q-HyViT, arXiv 2303.12557:
            ``E[dO^T diag((dL/dO)^2) dO]``.
        """
        error = np.matmul(left, right)
        error -= self.target
        np.square(error, out=error)
        error *= self.gains
        cost: NDArray[np.float64] = error.sum(axis=1, dtype=np.float64)
        return cost

    def angle(self, left: Floats, right: Floats) -> float:
        """Return one less the cosine between the outputs with and without rounding, 0 to 2.

        Source:
            EasyQuant, arXiv 2006.16669: the outputs, bias added, as one vector.
        """
        want = (self.target + self.offset).ravel()
        got = (np.matmul(left, right) + self.offset).ravel()
        lengths = float(np.linalg.norm(want)) * float(np.linalg.norm(got))
        return 1.0 - float(want @ got) / max(lengths, TINY)


def rounded(x: Floats, scale: Floats, zero: Floats, top: int) -> Floats:
    """Return x on a uniform grid of codes 0 to ``top``; scale and zero broadcastable against x."""
    codes = x / scale
    np.rint(codes, out=codes)
    codes += zero
    np.clip(codes, 0, top, out=codes)
    codes -= zero
    codes *= scale
    return codes


def least(count: int, loss: Callable[[int], float], *, stride: int = 1) -> tuple[int, float]:
    """Return the candidate, 0 to ``count - 1``, with the least loss, and that loss.

    Every ``stride``-th is tried, then those around the best: exact for stride 1. The first of
    equals wins.
    """
    coarse = {i: loss(i) for i in {*range(0, count, stride), count - 1}}
    best = min(sorted(coarse), key=coarse.__getitem__)
    around = range(max(0, best - stride + 1), min(count, best + stride))
    fine = coarse | {i: loss(i) for i in around if i not in coarse}
    found = min(sorted(fine), key=fine.__getitem__)
    return found, fine[found]


def column_scales(
    scene: Scene, left: Floats, base: Floats, fractions: Floats, limit: int
) -> tuple[Floats, float]:
    """Return a scale for each output channel with the least cost, and that cost.

    Shapes:
        left as in the scene, rounded; base (S, N): scales at fraction 1; fractions (F,); result
        (S, N).
    """
    best = np.full(base.shape, np.inf)
    scales = base.copy()
    for fraction in fractions:
        steps = base * fraction
        cost = scene.squared(left, rounded_weight(scene.right, steps, limit))
        better = cost < best
        best = np.where(better, cost, best)
        scales = np.where(better, steps, scales)
    return scales.astype(np.float32), float(best.sum())


def rounded_weight(right: Floats, steps: Floats, limit: int) -> Floats:
    """Return ``right`` (S, K, N) with steps (S, N), or (1, 1), and codes within ``limit``."""
    spread = steps[:, None, :]
    codes = np.rint(right / spread)
    np.clip(codes, -limit, limit, out=codes)
    codes *= spread
    rounded: Floats = codes.astype(np.float32)
    return rounded
