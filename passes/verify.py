# SPDX-License-Identifier: Apache-2.0
"""Proves the emitted model: valid, loadable, on the kernels it was placed on, close to float."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx
from numpy.typing import NDArray

from qhyvit_onnx.audit import Seen, audit
from qhyvit_onnx.config import Verification as Settings
from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.data import Feed, Feeds
from qhyvit_onnx.errors import PassError
from qhyvit_onnx.evaluate import compare
from qhyvit_onnx.facts import (
    EMITTED,
    FLOAT,
    INTERFACE,
    PLACEMENT,
    UNITS,
    VERIFICATION,
    Paired,
    Verification,
)
from qhyvit_onnx.interface import Coded, Interface
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.replay import Counted, Replay, replay
from qhyvit_onnx.runtime import (
    Arithmetic,
    Options,
    Session,
    View,
    cores,
    cpu_features,
    paired_times,
)
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import arithmetic_of

FOLD_ERROR = 1e-4
"""What all folds together may change in an output, as a fraction of its range."""

NEARLY_ALL = 0.9
"""Of the rounds in which two models are timed. Two that are as fast come there once in a hundred
times, with ten rounds."""

FOLD_SAMPLES = 4
"""Samples on which that is measured, at most: a single score has no range in one sample."""


@dataclass(frozen=True)
class Verify(Pass):
    """Check, audit, compare, time; a failed check is an error, never a warning."""

    target: Target
    settings: Settings = Settings()  # noqa: RUF009  frozen

    name = "verify"
    summary = "checker, kernels really fused here and on ARM, output against float, latency"
    needs = (FLOAT, UNITS, PLACEMENT, INTERFACE)
    gives = (EMITTED, VERIFICATION)

    def run(self, state: State) -> Outcome:
        """Put EMITTED and VERIFICATION."""
        model = state.model()
        _check(model)
        seen = self._audit(model, state)
        samples = state.held_back or state.calibration
        _check_folds(state, samples)
        interface = state.get(INTERFACE)
        arithmetic = arithmetic_of(self.target, cpu_features())
        closeness = compare(
            Session(state.source),
            Coded(Session(model, Options(arithmetic=arithmetic)), interface),
            samples,
            limit=self.settings.samples,
            blame=PassError,
        )
        times = self._time(state.source, model, samples, interface)
        replayed = self._replay(model, samples.mapped(interface.encode), arithmetic)
        state.put(EMITTED, model)
        kernels = {item.unit: item.kernel for item in seen}
        views = tuple(str(view) for view in View)
        held = state.held_back is not None
        state.put(
            VERIFICATION,
            Verification(kernels, views, closeness, held, str(arithmetic), times, replayed),
        )
        lowest = min((item.sqnr_db for item in closeness.values()), default=float("nan"))
        said = f"{len(kernels)} integer kernels confirmed, SQNR {lowest:.1f} dB"
        return Outcome(0, said + _said_of(replayed))

    def _audit(self, model: onnx.ModelProto, state: State) -> tuple[Seen, ...]:
        units, int8 = state.get(UNITS), state.get(PLACEMENT).int8
        views = [audit(model, units, int8, view) for view in View]
        return views[0]

    def _replay(
        self, model: onnx.ModelProto, samples: Feeds, arithmetic: Arithmetic
    ) -> Replay | None:
        if not self.settings.replay:
            return None
        feeds = islice(samples, self.settings.replay)
        return replay(model, feeds, Options(arithmetic=arithmetic))

    def _time(
        self,
        source: onnx.ModelProto,
        model: onnx.ModelProto,
        samples: Feeds,
        interface: Interface,
    ) -> dict[int, Paired]:
        """Return the times of both models on one thread, and on two where there are two."""
        found: dict[int, Paired] = {}
        clocks = {1: time.process_time, 2: time.perf_counter} if self.settings.rounds else {}
        for threads, clock in clocks.items():
            if threads <= cores():
                options = Options(threads=threads)
                feed = next(iter(samples))
                times = paired_times(
                    (Session(source, options), feed),
                    (Session(model, options), interface.encode(feed)),
                    rounds=self.settings.rounds, clock=clock,
                )  # fmt: skip
                found[threads] = _paired(*times)
        return found


def _paired(before: Sequence[float], after: Sequence[float]) -> Paired:
    """Return the medians of seconds, and whether the second model was slower."""
    longer = sum(second > first for first, second in zip(before, after, strict=True))
    in_float, int8 = (1e3 * float(np.median(seconds)) for seconds in (before, after))
    return Paired(in_float, int8, slower=longer >= NEARLY_ALL * len(before))


def _check_folds(state: State, samples: Feeds) -> None:
    """Raise unless the folded float model still computes what the user's model does.

    A model that amplifies rounding errors, as some do far from the data they were trained on, is
    allowed what a change of its inputs in the last places does to it.
    """
    source, folded = (Session(model) for model in (state.source, state.get(FLOAT)))
    feeds = list(islice(samples, FOLD_SAMPLES))
    for name, gap in _gaps(source, folded, feeds, feeds).items():
        if gap <= FOLD_ERROR:
            continue
        unsteady = _gaps(source, source, feeds, [_jittered(feed) for feed in feeds])[name]
        if gap > max(FOLD_ERROR, 10 * unsteady):
            raise PassError(
                f"folding changed output {name!r} by {gap:.1e} of its range",
                hint="compile with --fold off, and report the model",
            )


def _gaps(
    first: Session, second: Session, feeds: Sequence[Feed], others: Sequence[Feed]
) -> dict[str, float]:
    """Return how far two sessions are apart in every output of floats, over all samples."""
    runs = [(first.run(feed), second.run(other)) for feed, other in zip(feeds, others, strict=True)]
    found = {}
    for name in first.outputs:
        pairs = [(before[name], after[name]) for before, after in runs]
        held = pairs[0][0]
        if isinstance(held, np.ndarray) and np.issubdtype(held.dtype, np.floating):
            want, got = (np.concatenate([pair[at].reshape(-1) for pair in pairs]) for at in (0, 1))
            found[name] = _gap(want, got)
    return found


def _jittered(feed: Feed) -> Feed:
    """Return a sample whose floats differ by one part in a million."""
    return {
        name: (array * np.float32(1 + 2**-20)).astype(array.dtype)
        if np.issubdtype(array.dtype, np.floating)
        else array
        for name, array in feed.items()
    }


def _gap(want: NDArray[np.floating], got: NDArray[np.floating]) -> float:
    """Return the largest difference as a fraction of the range of what is wanted.

    The range counts as a tenth of the largest number at least: a single number has none.
    """
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(got)):
        return float("inf")
    if not finite.any():
        return 0.0
    want, got = want[finite].astype(np.float64), got[finite].astype(np.float64)
    span = max(float(np.ptp(want)), float(np.abs(want).max()) / 10, 1e-30)
    return float(np.abs(got - want).max()) / span


def _said_of(replayed: Replay | None) -> str:
    """Return what the note says of the replay; nothing when there is nothing to say."""
    if replayed is None or not replayed.layers:
        return ""
    if replayed.exact:
        return ", replay exact"
    steps, ulps = replayed.largest(Counted.STEPS), replayed.largest(Counted.ULPS)
    return f", replay off by {steps:g} steps" if steps else f", replay off by {ulps:.2g} ulp"


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise PassError(f"the emitted model is not valid ONNX: {error}") from error
