# SPDX-License-Identifier: Apache-2.0
"""Measures specimens on the machine this runs on."""

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from qhyvit_onnx.costs.chain import INPUT
from qhyvit_onnx.costs.specimens import LONG, SHORT, Specimen
from qhyvit_onnx.runtime import Options, Session

ROUNDS = 12
"""Runs of each of the two models, at least."""

SECONDS = 0.25
"""Time for one specimen, at most but for these rounds."""


def measure(
    specimens: Sequence[Specimen], tick: Callable[[int, int], None] = lambda _done, _total: None
) -> list[float]:
    """Return for each specimen what LONG costs more than SHORT, one thread; nanoseconds.

    Both are run in turn, and the least time of each counts: what else runs only ever adds. One that
    comes out at nothing is not a number (NaN).
    """
    found = []
    for done, specimen in enumerate(specimens):
        found.append(_measure(specimen))
        tick(done + 1, len(specimens))
    return found


def _measure(specimen: Specimen) -> float:
    options = Options(threads=1)
    sessions = [Session(specimen.model(times), options) for times in (SHORT, LONG)]
    feeds = {INPUT: np.random.default_rng(0).normal(size=specimen.shape).astype(np.float32)}
    spent: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    while len(spent[0]) < ROUNDS or time.perf_counter() - start < SECONDS:
        for session, seconds in zip(sessions, spent, strict=True):
            begun = time.process_time()
            session.run(feeds)
            seconds.append(time.process_time() - begun)
    short, long = (min(seconds[1:]) for seconds in spent)
    extra = 1e9 * (long - short)
    return extra if extra > 0 else math.nan
