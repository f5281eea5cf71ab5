# SPDX-License-Identifier: Apache-2.0
"""How much speed to give for a quiet output: the weight of noise against cost."""

from collections.abc import Collection, Mapping

from qhyvit_onnx.config import Guard
from qhyvit_onnx.passes._ledger import Ledger

_STEPS = 24
"""Halvings of the range of weights, on a logarithmic scale."""

_LOWEST, _HIGHEST = -3.0, 9.0
"""Decades of weight tried, in float costs of the network for an output that is all noise."""


def quietest_enough(
    ledger: Ledger, cheapest: Collection[str], noise: Mapping[str, float], guard: Guard
) -> set[str]:
    """Return the units out of ``cheapest`` to run int8, so that the output is quiet enough.

    Errors of different units are taken to add up. Of the placements that are cheapest for some
    weight of noise it is the fastest with at most ``guard.max_noise``, or, where that would give
    away more than ``guard.max_share`` of what int8 saves, the quietest that does not. The units
    left float only grow in number with the weight.
    """
    allowed = set(cheapest)
    in_float, least = ledger.cost(set()), ledger.cost(allowed)
    if guard.weight and noise:
        allowed = ledger.cheapest(allowed, noise, in_float * guard.weight)
        noise = {name: noise[name] for name in allowed}
    if sum(noise.values()) <= guard.max_noise:
        return allowed
    affordable = in_float - (1 - guard.max_share) * (in_float - least)
    quiet, quieter, low, high = None, allowed, _LOWEST, _HIGHEST
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = ledger.cheapest(allowed, noise, in_float * 10.0**middle)
        if ledger.cost(found) > affordable:
            high = middle
        elif sum(noise[name] for name in found) <= guard.max_noise:
            quiet, high = found, middle
        else:
            quieter, low = found, middle
    return quieter if quiet is None else quiet
