# SPDX-License-Identifier: Apache-2.0
"""Turns measured models into the rows of a cost table."""

from collections.abc import Collection, Mapping, Sequence
from math import isnan

import numpy as np
from scipy.optimize import nnls

from qhyvit_onnx.costs.specimens import Specimen
from qhyvit_onnx.costs.table import KEYS, Cost


def fit(
    specimens: Sequence[Specimen], measured: Sequence[float], free: Collection[str] = ()
) -> dict[str, Cost]:
    """Return every row of a table from what each specimen costs, LONG less SHORT.

    ``free`` names rows that are known to cost nothing: what the machine does not do. A specimen
    whose cost is not a number was lost in noise and does not count.

    All rows at once: least squares of relative errors, no coefficient below zero (Lawson and
    Hanson, Solving Least Squares Problems, 1974, chapter 23). A model of several units tells of
    all of them.
    """
    known = [pair for pair in zip(specimens, measured, strict=True) if not isnan(pair[1])]
    terms = [specimen.terms() for specimen, _ in known]
    costs = np.array([cost for _, cost in known])
    matrix = np.array([_line(item, free) for item in terms]) / costs[:, None]
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-30)
    found, _ = nnls(matrix / scale, np.ones(len(terms)), maxiter=30 * matrix.shape[1])
    found /= scale
    errors = np.abs(matrix @ found - 1.0)
    rows = {}
    for index, key in enumerate(KEYS):
        own = errors[[key in item for item in terms]]
        fixed, mac, element = found[3 * index : 3 * index + 3]
        error = float(np.median(own)) if own.size else 0.0
        rows[key] = Cost(float(fixed), float(mac), float(element), error)
    return rows


def _line(terms: Mapping[str, tuple[float, float, float]], free: Collection[str]) -> list[float]:
    """Return the unknowns' factors of one model: fixed, mac and element of every key."""
    nothing = (0.0, 0.0, 0.0)
    return [x for key in KEYS for x in (nothing if key in free else terms.get(key, nothing))]
