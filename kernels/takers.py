# SPDX-License-Identifier: Apache-2.0
"""What is kept of the tensors and gradients that pass by, sample by sample, in fixed memory.

A taker sees tensors on the way forward and the gradient of the last of them on the way back. What
no gradient reaches, or one that is not finite, gives no evidence: zeros would call every error
free.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhyvit_onnx.kernels.evidence import LayerEvidence, ProductEvidence, TensorEvidence
from qhyvit_onnx.kernels.patches import places_of, read_at, written_at
from qhyvit_onnx.kernels.probes import LayerProbe, ProductProbe
from qhyvit_onnx.kernels.shelf import Shelf

ELEMENTS = 1 << 14
"""Kept of one tensor, over all samples; at least one place of each."""

CHANNELS = 1 << 12
"""Beyond these the last axis counts positions (a norm over a flattened map): one channel."""

GRAM_PLACES = 512
"""Of one layer and sample that enter its gram: neighbours tell little more, at the same price."""

ROWS = 512
"""Patches kept of one layer, over all samples; at least one of each."""

MATRICES = 8
"""Kept of one product and sample."""

PRODUCT_SAMPLES = 4
"""Samples that products are kept of, spread evenly."""

SIDE, DEPTH = 64, 1024
"""Rows and columns kept of a matrix of a product, and terms of its sums."""


class Taker(ABC):
    """Watches some tensors of a network."""

    reads: tuple[str, ...] = ()
    """Tensors it wants to see besides, all computed earlier."""

    def __init__(self, at: str) -> None:
        """Watch the tensor ``at``."""
        self.at = at

    @abstractmethod
    def see(self, earlier: Sequence[Tensor], x: Tensor, rng: np.random.Generator) -> None:
        """Look at what ``reads`` and ``at`` name, on one sample."""

    @abstractmethod
    def pull(self, gradient: Tensor) -> None:
        """Take the gradient at ``at``, after ``see``; never called if none reaches it."""


class TensorTaker(Taker):
    """Values of a tensor at some places, and their gains."""

    def __init__(self, at: str, axis: int, samples: int) -> None:
        """Watch a tensor with channels along ``axis`` on so many samples."""
        super().__init__(at)
        self._axis, self._samples = axis, samples
        self._places = torch.zeros(0, dtype=torch.int64)
        self._values, self._gains = Shelf(samples), Shelf(samples)

    def see(self, earlier: Sequence[Tensor], x: Tensor, rng: np.random.Generator) -> None:
        """Draw places and keep the values there."""
        rows = self._rows(x)
        count = max(1, ELEMENTS // max(1, rows.shape[1] * self._samples))
        self._places = _drawn(rows.shape[0], count, rng, x)
        values = rows[self._places].float()
        self._values.add(values)
        self._gains.add(torch.zeros_like(values))

    def pull(self, gradient: Tensor) -> None:
        """Keep the gains at the same places."""
        self._gains.replace(self._rows(gradient)[self._places].float().square())

    def evidence(self) -> TensorEvidence | None:
        """Return what was kept; None if no gradient came."""
        if not _tells(self._gains.rows()):
            return None
        return TensorEvidence(_array(self._values.rows()), _array(self._gains.rows()))

    def _rows(self, x: Tensor) -> Tensor:
        """Return ``x`` as (places, channels)."""
        if x.ndim == 0 or x.shape[self._axis] > CHANNELS:
            return x.reshape(-1, 1)
        turned = x.movedim(self._axis, -1)
        return turned.reshape(-1, turned.shape[-1])


class LayerTaker(Taker):
    """The gram of what a layer reads, and patches of it."""

    def __init__(self, probe: LayerProbe, samples: int) -> None:
        """Watch a layer on so many samples."""
        super().__init__(probe.writes)
        self.reads = (probe.reads,)
        self._geometry = probe.geometry
        self._rows_a_sample = max(1, ROWS // samples)
        self._x = torch.zeros(0)
        self._places = torch.zeros(0, dtype=torch.int64)
        self._kept = self._places
        self._gram: Tensor | None = None
        self._seen = 0
        self._rows, self._gains = Shelf(samples), Shelf(samples)

    def see(self, earlier: Sequence[Tensor], x: Tensor, rng: np.random.Generator) -> None:
        """Draw places; what the layer reads is looked at on the way back."""
        (self._x,) = earlier
        self._places = _drawn(places_of(self._geometry, x), GRAM_PLACES, rng, x)
        self._kept = _drawn(len(self._places), self._rows_a_sample, rng, x)
        self._seen += len(self._places)

    def pull(self, gradient: Tensor) -> None:
        """Add to the gram; keep some patches with their gains."""
        gains = written_at(self._geometry, gradient, self._places).float().square()
        rows = read_at(self._geometry, self._x, gradient, self._places).float()
        self._rows.add(rows[self._kept])
        self._gains.add(gains[self._kept].flatten(1))
        weighted = (rows * gains.mean(2, keepdim=True).sqrt()).transpose(0, 1)  # (groups, P, K)
        added = weighted.transpose(1, 2) @ weighted
        self._gram = added if self._gram is None else self._gram.add_(added)

    def evidence(self) -> LayerEvidence | None:
        """Return what was kept; None if no gradient came."""
        if self._gram is None or not _tells(self._gram.diagonal(dim1=1, dim2=2)):
            return None
        gram = self._gram.div_(self._seen)
        return LayerEvidence(_array(gram), _array(self._rows.rows()), _array(self._gains.rows()))


class ProductTaker(Taker):
    """Matrices of both operands of a product."""

    def __init__(self, probe: ProductProbe, samples: int) -> None:
        """Watch a product on a few of so many samples."""
        super().__init__(probe.writes)
        self.reads = (probe.left, probe.right)
        self._every = -(-samples // PRODUCT_SAMPLES)
        self._turn = -1
        few = min(samples, PRODUCT_SAMPLES)
        self._left, self._right, self._gains = Shelf(few), Shelf(few), Shelf(few)
        self._heads: list[NDArray[np.int64]] = []
        self._sizes: list[int] = []
        self._picked: tuple[Tensor, Tensor, Tensor] | None = None

    def see(self, earlier: Sequence[Tensor], x: Tensor, rng: np.random.Generator) -> None:
        """Draw matrices, rows, columns and terms, and keep the operands there."""
        self._turn, self._picked = self._turn + 1, None
        if self._turn % self._every or min(tensor.ndim for tensor in earlier) < 2:
            return
        left, right = (_matrices(t.expand(*x.shape[:-2], *t.shape[-2:])) for t in earlier)
        which = _drawn(len(left), MATRICES, rng, x)
        down, across = (_drawn(size, SIDE, rng, x) for size in x.shape[-2:])
        terms = _drawn(left.shape[-1], DEPTH, rng, x)
        sizes = [len(down), len(terms), len(across)]
        if self._sizes in ([], sizes):
            self._sizes, self._picked = sizes, (which, down, across)
            self._left.add(_part(left, which, down, terms))
            self._right.add(_part(right, which, terms, across))
            self._gains.add(x.new_zeros(len(which), len(down), len(across)).float())
            self._heads.append((which % (x.shape[-3] if x.ndim > 2 else 1)).cpu().numpy())

    def pull(self, gradient: Tensor) -> None:
        """Keep the gains of the same matrices."""
        if self._picked is not None:
            self._gains.replace(_part(_matrices(gradient), *self._picked).square())

    def evidence(self) -> ProductEvidence | None:
        """Return what was kept; None if no gradient came, or an operand is a vector."""
        if not _tells(self._gains.rows()):
            return None
        left, right, gains = (_array(s.rows()) for s in (self._left, self._right, self._gains))
        return ProductEvidence(left, right, gains, np.concatenate(self._heads))


class GainTaker(Taker):
    """The mean squared gradient of a tensor."""

    def __init__(self, at: str) -> None:
        """Watch one tensor."""
        super().__init__(at)
        self._sum, self._elements = 0.0, 0

    def see(self, earlier: Sequence[Tensor], x: Tensor, rng: np.random.Generator) -> None:
        """Count the elements: where no gradient comes, it is zero."""
        self._elements += x.numel()

    def pull(self, gradient: Tensor) -> None:
        """Add its squares."""
        self._sum += float(gradient.float().square().sum())

    def gain(self) -> float | None:
        """Return the mean; None if no gradient came."""
        return self._sum / self._elements if 0.0 < self._sum < np.inf else None


def _drawn(total: int, count: int, rng: np.random.Generator, like: Tensor) -> Tensor:
    """Return up to ``count`` of ``total`` indices, rising, one out of each of equal stretches."""
    if total <= count:
        return torch.arange(total, device=like.device)
    found = (np.arange(count) + rng.random(count)) * (total / count)
    return torch.from_numpy(np.minimum(found.astype(np.int64), total - 1)).to(like.device)


def _matrices(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-2:])


def _part(matrices: Tensor, which: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return matrices[which[:, None, None], rows[:, None], columns].float()


def _tells(gains: Tensor) -> bool:
    """Tell whether ``gains`` are finite and not all zero."""
    total = float(gains.double().sum())
    return np.isfinite(total) and total > 0.0


def _array(tensor: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = tensor.cpu().numpy()
    return found
