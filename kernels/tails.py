# SPDX-License-Identifier: Apache-2.0
"""Where activation functions are flat: clipping what they read there changes nothing they give."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit

Doubles: TypeAlias = NDArray[np.float64]
Function: TypeAlias = Callable[[Doubles], Doubles]

FUNCTIONS: Mapping[str, Function] = {
    "Gelu": lambda x: x * 0.5 * (1.0 + erf(x * 2**-0.5)),
    "HardSwish": lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),
    "Relu": lambda x: np.maximum(x, 0.0),
    "Silu": lambda x: x * expit(x),
}
"""By op or composite: those that let large values through, and nothing of the rest."""

POINTS = 1024


def alive(function: Function, low: float, high: float, share: float) -> tuple[float, float]:
    """Return the part of ``[low, high]`` outside which ``function`` is flat; zero is always in it.

    Units:
        flat is what varies by at most ``share`` of all that ``function`` gives on the range, the
        error of rounding it being a share, too.

    Error:
        the ends come from ``POINTS`` places on each side, and are wide by up to one of them.
    """
    sides = [np.linspace(end, 0.0, POINTS) for end in (min(low, 0.0), max(high, 0.0))]
    values = [function(places) for places in sides]
    allowed = share * float(np.ptp(np.concatenate(values)))
    bottom, top = (
        _flat_end(places, given, allowed) for places, given in zip(sides, values, strict=True)
    )
    return bottom, top


def _flat_end(places: Doubles, values: Doubles, allowed: float) -> float:
    """Return the last of ``places`` to which ``values`` have varied by no more than ``allowed``."""
    rise = np.maximum.accumulate(values) - values
    fall = values - np.minimum.accumulate(values)
    moved = np.maximum(rise, fall) > allowed
    return float(places[np.argmax(moved) - 1]) if moved.any() else 0.0
