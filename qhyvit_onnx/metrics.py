# SPDX-License-Identifier: Apache-2.0
"""How far a quantized output is from the float one, accumulated sample by sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.generic]


EXACT_DB = 200.0
"""What stands for "no error at all"; less than zero, for one that no number tells."""


@dataclass(frozen=True, slots=True)
class Closeness:
    """One output compared over all samples.

    Units:
        sqnr_db in dB of squared signal over squared error; cosine in [-1, 1]; agreement and top-1
        as fractions of decisions (argmax over classes). Where one output is not finite and the
        other is something else, sqnr_db is ``-EXACT_DB`` and cosine 0.
    """

    sqnr_db: float
    cosine: float
    agreement: float
    samples: int
    top1_float: float | None = None
    top1_int8: float | None = None


class Comparison:
    """Sums over samples; keeps no outputs."""

    def __init__(self) -> None:
        """Start empty."""
        self._signal = self._error = self._dot = self._other = 0.0
        self._same = self._decisions = self._samples = 0
        self._right = [0, 0]
        self._labelled = 0
        self._apart = False

    def add(
        self, reference: Values, candidate: Values, labels: Sequence[int] | None = None
    ) -> None:
        """Take one run's float and quantized output, of one shape; ``labels``: one a decision."""
        x, y = (np.asarray(v, np.float64) for v in (reference, candidate))
        choices = [_decide(v) for v in (x, y)]
        x, y = self._numbers(x, y)
        self._signal += float(np.square(x).sum())
        self._error += float(np.square(x - y).sum())
        self._dot += float((x * y).sum())
        self._other += float(np.square(y).sum())
        self._same += int((choices[0] == choices[1]).sum())
        self._decisions += choices[0].size
        self._samples += x.shape[0] if x.ndim else 1
        if labels is not None:
            self._labelled += len(labels)
            for index, choice in enumerate(choices):
                self._right[index] += int((choice.reshape(-1) == np.asarray(labels)).sum())

    def _numbers(
        self, x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return both with zeros where one is no finite number; note where only one is none.

        The same infinity in both, as of a mask, is no error, and no signal.
        """
        odd = ~(np.isfinite(x) & np.isfinite(y))
        if not odd.any():
            return x, y
        self._apart |= not np.array_equal(x[odd], y[odd], equal_nan=True)
        return np.where(odd, 0.0, x), np.where(odd, 0.0, y)

    def result(self) -> Closeness:
        """Return the figures over everything added so far."""
        norm = float(np.sqrt(self._signal) * np.sqrt(self._other))
        exact = self._error == 0.0
        sqnr_db = EXACT_DB if exact else _decibels(self._signal, self._error)
        cosine = 1.0 if exact else self._dot / max(norm, 1e-30)
        return Closeness(
            sqnr_db=-EXACT_DB if self._apart else sqnr_db,
            cosine=0.0 if self._apart else cosine,
            agreement=self._same / max(self._decisions, 1),
            samples=self._samples,
            top1_float=self._right[0] / self._labelled if self._labelled else None,
            top1_int8=self._right[1] / self._labelled if self._labelled else None,
        )


def _decibels(signal: float, error: float) -> float:
    return min(float(10 * np.log10(max(signal, 1e-30) / error)), EXACT_DB)


def decides(output: Values, decisions: int, classes: int) -> bool:
    """Tell whether ``output`` makes so many decisions, among at least so many classes."""
    made = _decide(np.asarray(output, np.float64)).size
    return made == decisions and output.size >= made * classes


def _decide(x: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the class chosen at every position: channels of an image map, else the last axis."""
    if x.ndim == 0 or x.size == 0:
        return np.zeros(0, np.int64)
    return np.asarray(x.argmax(axis=1 if x.ndim == 4 else -1), np.int64)
