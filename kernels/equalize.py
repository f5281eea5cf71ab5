# SPDX-License-Identifier: Apache-2.0
"""What a scale and shift per channel do to the rounding errors of tensors and of the weights read.

Errors are counted where a layer sums: a step D of the activations adds D^2 / 12 for every weight
squared, a step d of a row of the weight adds d^2 / 12 for every activation squared.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

ACTIVATION_LEVELS = 255
WEIGHT_LEVELS = 127
SMALLEST = 2.0**-10
"""Scales below this, relative to the largest of a group, are raised: channels that are nearly dead
would only be made of rounding errors."""


class Moments(NamedTuple):
    """What was seen of every channel. Shapes: all (size,); NaN where nothing was seen."""

    low: Floats
    high: Floats
    mean: Floats
    square: Floats
    """Mean of x squared."""

    @property
    def variance(self) -> Floats:
        """Mean square about the mean."""
        return np.maximum(self.square - self.mean**2, 0.0)


class Weight(NamedTuple):
    """What a layer does to the channels it reads.

    Shapes:
        peak, energy (rows, K); ids (rows, K) or (1, K), into the channels.
    """

    peak: Floats
    """Largest weight of a row and an input, over the taps of the kernel."""
    energy: Floats
    """Sum of the squares of the weight of a row and an input, over the taps."""
    ids: Ids
    taps: int


def weight_of(weight: NDArray[np.floating], ids: Ids, groups: int) -> Weight:
    """Return the summary of a weight (C_out, K, *kernel) that reads channels ``ids`` (C_in,)."""
    flat = weight.reshape(*weight.shape[:2], -1).astype(np.float64)
    peak, energy = np.abs(flat).max(axis=2), np.square(flat).sum(axis=2)
    if groups > 1:
        rows = np.repeat(ids.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    else:
        rows = ids.reshape(1, -1)
    return Weight(peak, energy, rows, flat.shape[2])


def step(seen: Moments, ids: Ids, scale: Floats, shift: Floats) -> float:
    """Return the step of one grid for the channels ``ids``: range over levels, zero included."""
    low = ((seen.low - shift)[ids] / scale[ids]).min()
    high = ((seen.high - shift)[ids] / scale[ids]).max()
    return float(max(high, 0.0) - min(low, 0.0)) / ACTIVATION_LEVELS


def signal(weight: Weight, seen: Moments) -> float:
    """Return the variance that the channels make at the outputs: what errors are measured by."""
    return float((weight.energy * seen.variance[weight.ids]).sum())


def activation_noise(weight: Weight, scale: Floats, step_: float) -> float:
    """Return the error at the outputs that a step of the activations makes."""
    return step_**2 / 12 * float((weight.energy * np.square(scale[weight.ids])).sum())


def weight_noise(weight: Weight, seen: Moments, scale: Floats, shift: Floats) -> float:
    """Return the error at the outputs that rounding every row of the weight makes."""
    steps = (weight.peak * scale[weight.ids]).max(axis=1) / WEIGHT_LEVELS
    square = seen.variance + np.square(seen.mean - shift)  # E[(x - c)^2]
    reading = (square / np.square(scale))[weight.ids].sum(axis=1)
    return float((np.square(steps) / 12 * reading).sum()) * weight.taps


def growth(weight: Weight, seen: Moments, scale: Floats) -> float:
    """Return by how much the range of a row grows at most, at unchanged activation energy."""
    power = seen.variance[weight.ids]
    before, after = power.sum(axis=1), (power / np.square(scale[weight.ids])).sum(axis=1)
    gain = np.sqrt(np.where(before > 0, after / np.maximum(before, 1e-300), 1.0))
    old, new = weight.peak.max(axis=1), (weight.peak * scale[weight.ids]).max(axis=1)
    return float((gain * np.where(old > 0, new / np.maximum(old, 1e-300), 1.0)).max(initial=1.0))


def equalizing(logs: Floats, groups: Ids, signs: NDArray[np.int64], count: int) -> Floats:
    """Return the log scale of each group that brings its members to one size.

    Shapes:
        logs, groups, signs (members,): log of a size, and t^sign is the scale of the member;
        returns (count,): the least squares solution of log size = sign * log t.

    Source:
        with one pair of signs per group: cross-layer equalization, arXiv 1906.04721, eq. 11.
    """
    total = np.bincount(groups, weights=signs * logs, minlength=count)
    members = np.maximum(np.bincount(groups, minlength=count), 1)
    return np.asarray(total / members)


def level(logs: Floats, groups: Ids, signs: NDArray[np.int64], free: NDArray[np.bool_]) -> float:
    """Return the log of the size that all members should come to.

    That of the members that stay what they are: those that are not free, and groups with both
    signs, queries and keys, whose product no scale changes. Where all can move any level will do.

    Shapes:
        all (members,).
    """
    both = np.isin(groups, groups[signs > 0]) & np.isin(groups, groups[signs < 0])
    staying = both | ~free
    return float(np.median(logs[staying] if staying.any() else logs))  # few may be dead


def centred(need: Floats) -> Floats:
    """Return the logs of ``need`` about their mean; 0 where there is none."""
    known = need > need.max() * 1e-12
    logs = np.log(np.where(known, need, 1.0))
    return np.where(known, logs - logs.sum() / max(int(known.sum()), 1), 0.0)


def bounded(logs: Floats) -> Floats:
    """Return scales from their logs, none below SMALLEST times the largest."""
    return np.asarray(np.exp(np.maximum(logs, logs.max() + np.log(SMALLEST))))
