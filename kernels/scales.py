# SPDX-License-Identifier: Apache-2.0
"""Scales that minimise the expected squared error, in closed form from a histogram or a weight."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]


NEGLIGIBLE = 1e-20
"""A row whose weights are all below this is a row of zeros: its scale would be denormal."""

CELLS, LEAST = 24, 0.05
"""Cells in which gains are averaged by value, and the least weight of one."""


def search_range(
    centers: Doubles,
    counts: Doubles,
    low: float,
    high: float,
    *,
    bits: int,
    candidates: int,
    lowest: float,
) -> tuple[float, float]:
    """Return the clip range inside ``[low, high]`` with the least expected squared error.

    Every pair of ``candidates`` clip points a side is scored: positions inside cost
    ``s^2 / 12`` (uniform rounding noise), positions outside the square of their distance. All
    pairs come from cumulative moments, so the cost does not depend on the number of bins.
    Exact zeros must be left out of ``counts``: zero is a code of every grid.

    Shapes:
        centers, counts (bins,).

    Source:
        expected error of a uniform quantizer with clipping: ACIQ, arXiv 1810.05723, eq. 4-6,
        with the measured histogram in place of a parametric density.
    """
    fractions = np.linspace(lowest, 1.0, candidates)
    lows = np.unique(min(low, 0.0) * fractions)  # the widest first: it wins a tie
    highs = np.unique(max(high, 0.0) * fractions)[::-1]
    below, inside_low = _tail(centers, counts, lows)
    above, inside_high = _tail(-centers[::-1], counts[::-1], -highs)
    inside = counts.sum() - inside_low[:, None] - inside_high[None, :]
    steps = (highs[None, :] - lows[:, None]) / ((1 << bits) - 1)
    error = below[:, None] + above[None, :] + np.maximum(inside, 0.0) * steps**2 / 12.0
    i, j = np.unravel_index(int(np.argmin(error)), error.shape)
    return float(lows[i]), float(highs[j])


def weighted_counts(centers: Doubles, counts: Doubles, values: Floats, gains: Floats) -> Doubles:
    """Return ``counts`` times what an error costs at values of that size, 1 on average.

    The gains of single places are as uncertain as they are large, and the rare values that clip
    points are about are hardly among them. So the histogram says how often a value occurs, and
    the places say what an error there costs on average: in cells that hold equally many of them,
    and never below a twentieth of the mean. Beyond the places the last cell counts.

    Shapes:
        centers, counts (bins,); values, gains of one shape: places where both are known.

    Units:
        gains are squared gradients: an error e costs ``gains * e ** 2``.
    """
    known = values != 0.0  # zero is a code of every grid
    seen, cost = values[known].astype(np.float64), gains[known].astype(np.float64)
    if not seen.size or not cost.sum() > 0.0:
        return counts
    edges = np.unique(np.quantile(seen, np.linspace(0.0, 1.0, CELLS + 1)))[1:-1]
    cells = np.searchsorted(edges, seen, side="right")
    sizes = np.bincount(cells, minlength=len(edges) + 1)
    means = np.bincount(cells, cost, len(edges) + 1) / np.maximum(sizes, 1) / cost.mean()
    weights: Doubles = np.maximum(means, LEAST)[np.searchsorted(edges, centers, side="right")]
    return counts * weights


def range_error(centers: Doubles, counts: Doubles, low: float, high: float, steps: int) -> float:
    """Return the expected squared error when ``[low, high]`` is cut into ``steps`` steps.

    Shapes:
        centers, counts (bins,).
    """
    outside = np.maximum(low - centers, 0.0) + np.maximum(centers - high, 0.0)
    inside = float(counts[outside == 0.0].sum())
    return float(counts @ outside**2) + inside * ((high - low) / steps) ** 2 / 12.0


def _tail(centers: Doubles, counts: Doubles, points: Doubles) -> tuple[Doubles, Doubles]:
    """Return, for each clip point, the squared distance of all mass below it, and that mass."""
    padded = (np.concatenate([[0.0], np.cumsum(counts * centers**k)]) for k in range(3))
    index = np.searchsorted(centers, points)
    mass, first, second = (moment[index] for moment in padded)
    return np.maximum(second - 2 * points * first + points**2 * mass, 0.0), mass


def weight_scale(
    weight: Floats, *, limit: int, candidates: int, lowest: float = 0.7
) -> NDArray[np.float32]:
    """Return the symmetric scale of each row with the least squared rounding error.

    Shapes:
        weight (C_out, K); result (C_out,).

    Units:
        result in weight units a step; a row of zeros gets 0 (the caller picks what suits its bias).
    """
    peak = np.abs(weight).max(axis=1)  # (C_out,)
    peak = np.where(peak > NEGLIGIBLE, peak, 0.0)
    best = np.full(peak.shape, np.inf)
    fraction = np.ones_like(best)
    inverse = limit / np.where(peak > 0, peak, 1.0)
    unit = (weight * inverse[:, None]).astype(np.float32)  # rows scaled to [-limit, limit]
    for candidate in np.linspace(1.0, lowest, candidates):
        codes = np.clip(np.rint(unit / np.float32(candidate)), -limit, limit)
        error = np.square(codes * np.float32(candidate) - unit).sum(axis=1)
        better = error < best
        best = np.where(better, error, best)
        fraction = np.where(better, candidate, fraction)
    return (fraction * peak / limit).astype(np.float32)


def pair_safe_scale(
    weight: Floats, scale: NDArray[np.float32], *, limit: int
) -> NDArray[np.float32]:
    """Raise the scale of rows where two neighbours of one sign would sum to more than ``limit``.

    AVX2 without VNNI multiplies u8 by s8 in pairs (vpmaddubsw) and saturates at 32767: with
    activations up to 255, a pair of weights may sum to at most 128.

    Shapes:
        weight (C_out, K) with K in the order the kernel sums; scale (C_out,).
    """
    even = weight if weight.shape[1] % 2 == 0 else np.pad(weight, ((0, 0), (0, 1)))
    left, right = even[:, 0::2], even[:, 1::2]
    up = (np.maximum(left, 0) + np.maximum(right, 0)).max(axis=1)
    down = (np.maximum(-left, 0) + np.maximum(-right, 0)).max(axis=1)
    needed = np.maximum(up, down) / (limit - 1)  # one code of slack: two values may both round up
    raised: NDArray[np.float32] = np.maximum(scale, needed).astype(np.float32)
    return raised
