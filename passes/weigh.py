# SPDX-License-Identifier: Apache-2.0
"""How much the output suffers from an error at each tensor, and what its layers read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from qhyvit_onnx.config import CompileConfig, Effort
from qhyvit_onnx.effort import GET_TORCH, effort_of
from qhyvit_onnx.facts import BRIDGES, EVIDENCE, FLOAT, RANGES
from qhyvit_onnx.kernels.evidence import Evidence
from qhyvit_onnx.kernels.probes import Probes
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes._evidence import probes_of, too_wide
from qhyvit_onnx.programs import opaque_runner, program_of
from qhyvit_onnx.state import State
from qhyvit_onnx.units import LAYERS, Unit, find_units

SAMPLES = 32
"""Calibration samples that are run back, at most: as many as the papers use."""


@dataclass(frozen=True)
class Weigh(Pass):
    """Draw losses, run back from them, keep samples and sums; the graph stays as it is."""

    name = "weigh"
    summary = "how much the output suffers from an error at each tensor: diagonal Fisher"
    needs = (RANGES, FLOAT, BRIDGES)
    gives = (EVIDENCE,)

    def run(self, state: State) -> Outcome:
        """Put EVIDENCE; empty at effort fast."""
        if effort_of(state.config) is Effort.FAST:
            state.put(EVIDENCE, Evidence())
            return Outcome(0, _off(state.config))
        units = find_units(state.graph)
        probes = probes_of(units, state.get(RANGES), state.get(BRIDGES))
        samples = min(len(state.calibration), SAMPLES)
        evidence = _gather(state, probes, samples)
        state.put(EVIDENCE, evidence)
        return Outcome(0, _note(evidence, samples), _misses(units, probes, evidence))


def _gather(state: State, probes: Probes, samples: int) -> Evidence:
    from qhyvit_onnx.kernels.devices import device_of  # noqa: PLC0415 - torch is optional
    from qhyvit_onnx.kernels.executor import Executor  # noqa: PLC0415 - torch is optional
    from qhyvit_onnx.kernels.fisher import gather  # noqa: PLC0415 - torch is optional

    program = program_of(state.get(FLOAT))
    executor = Executor(program, device=device_of(state.config), opaque=opaque_runner(program))
    feeds = islice(state.calibration, samples)
    return gather(executor, feeds, probes, samples=samples, seed=state.config.seed, tick=state.tick)


def _off(config: CompileConfig) -> str:
    if config.effort is None:
        return f"off (no torch: errors count alike everywhere; {GET_TORCH} weighs them)"
    return "off (effort fast: errors count alike everywhere)"


def _note(evidence: Evidence, samples: int) -> str:
    draws = Counter(evidence.losses.values())
    losses = ", ".join(
        f"{draw} ({count} outputs)" if count > 1 else draw for draw, count in draws.items()
    )
    counts = f"{len(evidence.tensors)} tensors, {len(evidence.layers)} layers"
    note = f"{samples} samples; {losses}; {counts}, {len(evidence.products)} products"
    opaque = f"; no gradient passes {', '.join(evidence.opaque)}" if evidence.opaque else ""
    return note + opaque


def _misses(units: Sequence[Unit], probes: Probes, evidence: Evidence) -> dict[str, int]:
    """Return how many tensors and layers have no evidence, by reason."""
    missed = {
        "layers too wide for a gram": sum(u.kind in LAYERS and too_wide(u) for u in units),
        "tensors without a gradient": len(probes.tensors) - len(evidence.tensors),
        "layers without a gradient": len(probes.layers) - len(evidence.layers),
        "products without a gradient, or of a vector": len(probes.products)
        - len(evidence.products),
    }
    return {reason: count for reason, count in missed.items() if count}
