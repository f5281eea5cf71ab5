# SPDX-License-Identifier: Apache-2.0
"""Ends of a range by the share of values beyond them, from a histogram."""

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def histogram_ends(
    centers: Doubles, counts: Doubles, zeros: float, share: float
) -> tuple[float, float]:
    """Return the values below, and above, which the fraction ``1 - share`` of all lies.

    Shapes:
        centers, counts (bins,), centers rising; ``zeros`` values more are exactly zero.

    Error:
        half a bin: the middle of the bin in which that value lies is returned.
    """
    place = int(np.searchsorted(centers, 0.0))
    points, masses = np.insert(centers, place, 0.0), np.insert(counts, place, zeros)
    below = np.cumsum(masses)
    beyond = (1.0 - share) * below[-1]
    low = points[np.searchsorted(below, beyond, side="right")]
    above = np.cumsum(masses[::-1])
    high = points[::-1][np.searchsorted(above, beyond, side="right")]
    return float(low), float(high)
