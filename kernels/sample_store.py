# SPDX-License-Identifier: Apache-2.0
"""Tensors of many samples, drawn again and again: in memory while they fit, else in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Memory:
    """How much stores may hold together before they spill into files of ``folder``."""

    def __init__(self, limit: int, folder: Path) -> None:
        """Allow ``limit`` bytes."""
        self._left, self.folder = limit, folder
        self._files = 0

    def take(self, size: int) -> bool:
        """Tell whether ``size`` bytes may stay in memory, and count them."""
        fits = size <= self._left
        self._left -= size if fits else 0
        return fits

    def give_back(self, size: int) -> None:
        """Count ``size`` bytes as free again."""
        self._left += size

    def file(self) -> Path:
        """Return a path that no other store writes to."""
        self._files += 1
        return self.folder / f"{self._files}.samples"


class SampleStore:
    """One tensor, sample by sample along its first axis.

    Shapes:
        every sample has the same shape (R, ...) and dtype; ``pick`` gives n of them, (n * R, ...).
    """

    def __init__(self, memory: Memory) -> None:
        """Hold nothing yet."""
        self._memory = memory
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.float32
        self._kept: list[Tensor] = []
        self._kept_bytes = 0
        self._file: IO[bytes] | None = None

    def append(self, sample: Tensor) -> None:
        """Hold one more sample."""
        sample = sample.detach().contiguous().cpu()
        self._shape, self._dtype = tuple(sample.shape), sample.dtype
        size = sample.nbytes
        if self._file is None and self._memory.take(size):
            self._kept.append(sample)
            self._kept_bytes += size
            return
        if self._file is None:
            self._spill()
        assert self._file is not None
        self._file.seek(0, 2)
        self._file.write(sample.numpy().tobytes())

    def append_array(self, sample: NDArray[np.generic]) -> None:
        """Hold one more sample."""
        self.append(torch.from_numpy(np.array(sample)))

    def pick(self, indices: Sequence[int]) -> Tensor:
        """Return the samples at ``indices``, one after the other along the first axis."""
        if self._file is None:
            return torch.cat([self._kept[i] for i in indices])
        return torch.cat([self._read(i) for i in indices])

    def close(self) -> None:
        """Forget everything."""
        self._memory.give_back(self._kept_bytes)
        self._kept, self._kept_bytes = [], 0
        if self._file is not None:
            path = Path(self._file.name)
            self._file.close()
            path.unlink()
            self._file = None

    def _spill(self) -> None:
        """Move what is kept into a file: a store is in one place, so that order is position."""
        self._file = self._memory.file().open("w+b")
        for sample in self._kept:
            self._file.write(sample.numpy().tobytes())
        self._memory.give_back(self._kept_bytes)
        self._kept, self._kept_bytes = [], 0

    def _read(self, index: int) -> Tensor:
        assert self._file is not None
        size = int(np.prod(self._shape)) * self._dtype.itemsize
        self._file.seek(index * size)
        read = torch.frombuffer(bytearray(self._file.read(size)), dtype=self._dtype)
        return read.reshape(self._shape)
