# SPDX-License-Identifier: Apache-2.0
"""Turns measured models into the rows of a cost table."""

from collections.abc import Collection, Mapping, Sequence
from math import isnan
from types import MappingProxyType

import numpy as np
from scipy.optimize import nnls

from qhyvit_onnx.costs.specimens import Specimen
from qhyvit_onnx.costs.table import KEYS, Cost, Size


def fit(
    specimens: Sequence[Specimen],
    measured: Sequence[float],
    free: Collection[str] = (),
    known: Mapping[str, Cost] = MappingProxyType({}),
) -> dict[str, Cost]:
    """Return every row of a table from what each specimen costs, LONG less SHORT.

    ``free`` names rows that are known to cost nothing: what the machine does not do; ``known``
    gives rows that stay as they are. A specimen whose cost is not a number was lost in noise and
    does not count.

    All rows at once: least squares of relative errors, no coefficient below zero (Lawson and
    Hanson, Solving Least Squares Problems, 1974, chapter 23). A model of several units tells of
    all of them.
    """
    pairs = [pair for pair in zip(specimens, measured, strict=True) if not isnan(pair[1])]
    terms = [specimen.terms() for specimen, _ in pairs]
    costs = np.array([cost for _, cost in pairs])
    matrix = np.array([_line(item, (*free, *known)) for item in terms]) / costs[:, None]
    rest = 1.0 - np.array([_cost(item, known) for item in terms]) / costs
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-30)
    found, _ = nnls(matrix / scale, rest, maxiter=30 * matrix.shape[1])
    found /= scale
    errors = np.abs(matrix @ found - rest)
    rows = dict(known)
    for index, key in enumerate(KEYS):
        if key in known:
            continue
        own = errors[[key in item for item in terms]]
        fixed, mac, element = found[3 * index : 3 * index + 3]
        error = float(np.median(own)) if own.size else 0.0
        rows[key] = Cost(float(fixed), float(mac), float(element), error)
    return rows


def _cost(terms: Mapping[str, tuple[float, float, float]], rows: Mapping[str, Cost]) -> float:
    """Return what of one model's cost lies in ``rows``."""
    sizes = {key: Size(macs, elements, parts) for key, (parts, macs, elements) in terms.items()}
    return sum(rows[key].of(size) for key, size in sizes.items() if key in rows)


def _line(terms: Mapping[str, tuple[float, float, float]], free: Collection[str]) -> list[float]:
    """Return the unknowns' factors of one model: fixed, mac and element of every key."""
    nothing = (0.0, 0.0, 0.0)
    return [x for key in KEYS for x in (nothing if key in free else terms.get(key, nothing))]
