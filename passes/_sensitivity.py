# SPDX-License-Identifier: Apache-2.0
"""How much the model's output suffers when one unit alone is quantized, by forward runs only.

A model made of the float graph computes, beside the float path, what every unit would write if it
were quantized, and returns the differences. Each is then added to its unit's output, and the model
run on from there: one run tells what that unit's error does to the end of the network. Weights
stay constants, hence it is as fast as the float model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from qhyvit_onnx.data import Feed
from qhyvit_onnx.facts import Grids
from qhyvit_onnx.passes._stages import DELTA, Arrays, Stage, stages_of, telling
from qhyvit_onnx.passes._twins import Probe, twin_model
from qhyvit_onnx.programs import program_of
from qhyvit_onnx.runtime import Options, Session

_MOST_BYTES = 1 << 28
"""Of samples that are held at a time, while stages are opened one after the other."""


def measure(
    model: onnx.ModelProto,
    probes: Sequence[Probe],
    grids: Grids,
    samples: Iterable[Feed],
    tick: Callable[[int], None],
) -> dict[str, float]:
    """Return, by unit name, squared output error over squared output, mean over ``samples``.

    An output behind a softmax or sigmoid counts by what that reads: where the model is sure of its
    answer, the answer itself hardly tells errors apart. ``tick`` is told how many runs were made.

    Error:
        one unit at a time: errors of different units are taken to add up.
    """
    ends = _ends(model)
    stages = stages_of(model, [probe.unit.output.name for probe in probes])
    twins = Session(twin_model(model, probes, grids), Options(fuse_qdq=False))
    whole = telling(model, [*ends, *(name for stage in stages for name in stage.frontier)])
    errors: dict[str, list[float]] = {probe.unit.output.name: [] for probe in probes}
    runs = 0
    for held in _held(_Sample(whole.run(feeds) | feeds, twins.run(feeds)) for feeds in samples):
        for stage in stages:
            session = stage.session(model, held[0].clean, ends)
            for sample in held:
                found = list(_errors(session, stage, sample, ends))
                for name, error in zip(stage.perturbed, found, strict=True):
                    errors[name].append(error)
                runs += len(found)
                tick(runs)
    return {probe.unit.name: float(np.mean(errors[probe.unit.output.name])) for probe in probes}


@dataclass(frozen=True, slots=True)
class _Sample:
    """What the float model computes, and what quantizing each unit alone would add."""

    clean: Arrays
    deltas: Arrays

    @property
    def size(self) -> int:
        arrays = (*self.clean.values(), *self.deltas.values())
        return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def _held(samples: Iterable[_Sample]) -> Iterator[list[_Sample]]:
    """Yield ``samples`` in lists that memory can hold, of one at least."""
    held: list[_Sample] = []
    for sample in samples:
        held.append(sample)
        if sum(item.size for item in held) >= _MOST_BYTES:
            yield held
            held = []
    if held:
        yield held


def _errors(
    session: Session, stage: Stage, sample: _Sample, ends: Sequence[str]
) -> Iterator[float]:
    """Yield what perturbing each tensor of ``stage`` does to the outputs."""
    clean = {name: sample.clean[name] for name in ends}
    feeds = {name: sample.clean[name] for name in stage.frontier}
    for name in stage.perturbed:
        dirty = session.run({**feeds, f"{name}{DELTA}": sample.deltas[f"{name}{DELTA}"]})
        yield _relative_error(clean, clean | dirty)


def _ends(model: onnx.ModelProto) -> list[str]:
    """Return what the outputs are made of, before a closing softmax or sigmoid."""
    closings = program_of(model).closings().items()
    return list(dict.fromkeys(out if step is None else step.inputs[0] for out, step in closings))


def _relative_error(
    clean: Mapping[str, NDArray[np.generic]], dirty: Mapping[str, NDArray[np.generic]]
) -> float:
    """Return squared error over squared signal, mean over the outputs that are numbers.

    What is not finite does not count: a softmax may read the minus infinity of a mask.
    """
    ratios = []
    for name, reference in clean.items():
        if isinstance(reference, np.ndarray) and np.issubdtype(reference.dtype, np.floating):
            signal, found = (np.asarray(x, np.float64) for x in (reference, dirty[name]))
            signal, found = signal.reshape(-1), found.reshape(-1)
            known = np.isfinite(signal) & np.isfinite(found)
            if not known.all():
                signal, found = signal[known], found[known]
            error = found - signal
            ratios.append(float(error @ error) / max(float(signal @ signal), 1e-30))
    return float(np.mean(ratios)) if ratios else 0.0
