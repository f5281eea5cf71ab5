# SPDX-License-Identifier: Apache-2.0
"""Rounding of weights one by one, each cancelling what the errors before it do to the output."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

DAMPING = 0.01
"""Added to the diagonal of a gram, as a fraction of its mean: directions that calibration never
saw are not free."""

BLOCK = 64
"""Columns between two large matrix products."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """Codes of a weight and what their errors cost.

    Shapes:
        codes (C, K), whole numbers; cost (C,): ``d^T G d`` of every row, G damped.
    """

    codes: Floats
    cost: NDArray[np.float64]


class Feedback:
    """The factor of one gram, with which weights are rounded.

    With G = B B^T, B upper triangular, ``d^T G d = sum_k (B_kk d_k + sum_{j<k} B_jk d_j)^2``: taken
    in order, each term can be made small by the choice of one code.

    Source:
        GPTQ, arXiv 2210.17323, in the form of QuIP, arXiv 2307.13304, theorem 6 (the two are
        equal); columns in order of falling diagonal. Codes stay next to the weight, floor or
        ceiling, so that what was proven about sums of neighbouring codes holds.
    """

    def __init__(self, gram: Floats, damping: float = DAMPING) -> None:
        """Factor ``gram`` (groups, K, K), positive semidefinite, in float64."""
        damped = gram.astype(np.float64)
        diagonal = np.einsum("gkk->gk", damped)  # a view
        mean = diagonal.mean(axis=1, keepdims=True)
        diagonal += np.where(mean > 0.0, damping * mean, 1.0)
        self._order = np.argsort(-diagonal, axis=1, kind="stable")  # (groups, K)
        damped = np.take_along_axis(damped, self._order[:, :, None], 1)
        damped = np.take_along_axis(damped, self._order[:, None, :], 2)
        factor = np.linalg.cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1]
        weights = np.einsum("gkk->gk", factor).copy()
        self._pull = (factor / weights[:, None, :]).astype(np.float32)  # unit diagonal
        self._weights = np.square(weights)

    def round(self, weight: Floats, scale: Floats, limit: int) -> Rounded:
        """Return the codes of ``weight`` on the grid of ``scale``, within ``[-limit, limit]``.

        Shapes:
            weight (C, K), group by group; scale (C,), above zero.
        """
        groups, width = self._order.shape
        rows = weight.reshape(groups, -1, width)
        steps = scale.astype(np.float32).reshape(groups, -1, 1)
        wanted = np.take_along_axis(rows, self._order[:, None, :], 2) / steps
        codes, left = self._walk(wanted, limit)
        cost = np.matmul(np.square(left, dtype=np.float64), self._weights[:, :, None])
        out = np.empty_like(codes)
        np.put_along_axis(out, np.broadcast_to(self._order[:, None, :], codes.shape), codes, 2)
        total = cost[..., 0] * np.square(steps[..., 0], dtype=np.float64)
        return Rounded(out.reshape(weight.shape), total.reshape(-1))

    def _walk(self, wanted: Floats, limit: int) -> tuple[Floats, Floats]:
        """Return codes, column by column, and what each left uncancelled; in steps."""
        low = np.clip(np.floor(wanted), -limit, limit)
        high = np.clip(np.ceil(wanted), -limit, limit)
        codes, errors, left = (np.zeros_like(wanted) for _ in range(3))
        width = wanted.shape[2]
        for start in range(0, width, BLOCK):
            stop = min(start + BLOCK, width)
            owed = np.matmul(errors[:, :, :start], self._pull[:, :start, start:stop])
            for k in range(start, stop):
                debt = owed[:, :, k - start]
                code = np.rint(wanted[:, :, k] - debt)
                codes[:, :, k] = np.clip(code, low[:, :, k], high[:, :, k])
                error = codes[:, :, k] - wanted[:, :, k]
                errors[:, :, k], left[:, :, k] = error, error + debt
                # elementwise: for a product so small, threads wait longer than they work
                owed[:, :, k + 1 - start :] += (
                    error[:, :, None] * self._pull[:, None, k, k + 1 : stop]
                )
        return codes, left
