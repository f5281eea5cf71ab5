# SPDX-License-Identifier: Apache-2.0
"""Proves the emitted model: valid, loadable, on the kernels it was placed on, close to float."""

from dataclasses import dataclass

import numpy as np
import onnx

from qhyvit_onnx.audit import Seen, audit
from qhyvit_onnx.config import Verification as Settings
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.errors import PassError
from qhyvit_onnx.evaluate import compare
from qhyvit_onnx.facts import EMITTED, PLACEMENT, UNITS, VERIFICATION, Verification
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.runtime import Arithmetic, Options, Session, View, cpu_features, paired_cpu_times
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import Target


@dataclass(frozen=True)
class Verify(Pass):
    """Check, audit, compare, time; a failed check is an error, never a warning."""

    target: Target
    settings: Settings = Settings()  # noqa: RUF009  frozen

    name = "verify"
    summary = "checker, kernels really fused here and on ARM, output against float, latency"
    needs = (UNITS, PLACEMENT)
    gives = (EMITTED, VERIFICATION)

    def run(self, state: State) -> Outcome:
        """Put EMITTED and VERIFICATION."""
        model = state.model()
        _check(model)
        seen = self._audit(model, state)
        samples = state.held_back or state.calibration
        arithmetic = self.arithmetic()
        closeness = compare(
            Session(state.source),
            Session(model, Options(arithmetic=arithmetic)),
            samples,
            limit=self.settings.samples,
            blame=PassError,
        )
        times = self._time(state.source, model, samples)
        state.put(EMITTED, model)
        kernels = {item.unit: item.kernel for item in seen}
        views = tuple(str(view) for view in View)
        held = state.held_back is not None
        state.put(
            VERIFICATION, Verification(kernels, views, closeness, held, str(arithmetic), *times)
        )
        lowest = min((item.sqnr_db for item in closeness.values()), default=float("nan"))
        return Outcome(0, f"{len(kernels)} integer kernels confirmed, SQNR {lowest:.1f} dB")

    def arithmetic(self) -> Arithmetic:
        """Return how this host must sum to give the target's numbers."""
        saturates = not cpu_features() & {"avx512_vnni", "avx_vnni", "asimd"}
        return Arithmetic.EXACT if saturates and not self.target.pair_limit else Arithmetic.STOCK

    def _audit(self, model: onnx.ModelProto, state: State) -> tuple[Seen, ...]:
        units, int8 = state.get(UNITS), state.get(PLACEMENT).int8
        views = [audit(model, units, int8, view) for view in View]
        return views[0]

    def _time(
        self, source: onnx.ModelProto, model: onnx.ModelProto, samples: Feeds
    ) -> tuple[float, float]:
        if not self.settings.rounds:
            return float("nan"), float("nan")
        options = Options(threads=1)
        feeds = next(iter(samples))
        spent = paired_cpu_times(
            Session(source, options), Session(model, options), feeds, rounds=self.settings.rounds
        )
        first, second = (1e3 * float(np.median(seconds)) for seconds in spent)
        return first, second


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise PassError(f"the emitted model is not valid ONNX: {error}") from error
