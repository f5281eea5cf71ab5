# SPDX-License-Identifier: Apache-2.0
"""Room for what is kept of every sample, allocated once."""

import torch
from torch import Tensor


class Shelf:
    """Rows from sample after sample in one block of memory.

    Small blocks that stay, between large ones that go, would keep the allocator from using the
    room of the large ones again.
    """

    def __init__(self, samples: int) -> None:
        """Expect rows from so many samples, about as many from each."""
        self._left, self._filled = samples, 0
        self._last = slice(0, 0)
        self._room: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Keep the rows of one more sample.

        Shapes:
            rows (P, ...): what comes after P is the same every time.
        """
        end = self._filled + len(rows)
        if self._room is None or end > len(self._room):
            fresh = rows.new_zeros(self._filled + len(rows) * max(1, self._left), *rows.shape[1:])
            if self._room is not None:
                fresh[: self._filled] = self.rows()
            self._room = fresh
        self._last, self._filled, self._left = slice(self._filled, end), end, self._left - 1
        self._room[self._last] = rows

    def replace(self, rows: Tensor) -> None:
        """Put ``rows`` in the place of those added last."""
        assert self._room is not None
        self._room[self._last] = rows

    def rows(self) -> Tensor:
        """Return everything that was added."""
        return torch.zeros(0) if self._room is None else self._room[: self._filled]
