# SPDX-License-Identifier: Apache-2.0
"""How much the model's output suffers when one unit alone is quantized, by forward runs only.

Beside the float model, what every unit would write if it were quantized is computed, and how that
differs. The difference is then added to the unit's output, and the model run on from there: one run
tells what that unit's error does to the end of the network. Weights stay constants, hence it is as
fast as the float model.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
import onnx
from numpy.typing import NDArray

from qhyvit_onnx.data import Feed
from qhyvit_onnx.facts import Grids
from qhyvit_onnx.passes._chain import Chain
from qhyvit_onnx.passes._sections import sections_of
from qhyvit_onnx.passes._twins import DELTA, Probe
from qhyvit_onnx.programs import program_of
from qhyvit_onnx.runtime import Arrays, cores

_THREADS = 8
"""Runs side by side, at most: each holds activations of its own."""

_LEAST = 1e-30
"""Energy by which errors are divided, at least."""

_NEAR = 2
"""Sections in which an error is watched unit by unit when the whole way is too long."""


def measure(
    model: onnx.ModelProto,
    probes: Sequence[Probe],
    grids: Grids,
    samples: Iterable[Feed],
    tick: Callable[[int], None],
    *,
    near: bool = False,
) -> dict[str, float]:
    """Return, by unit name, squared output error over squared output, mean over ``samples``.

    An output behind a softmax or sigmoid counts by what that reads: where the model is sure of its
    answer, the answer itself hardly tells errors apart. With ``near`` the errors of a section are
    followed to the output together, and shared out by what each does a section further on: within
    what one sample differs from the next on MobileViT, at a third of the work. ``tick`` is told how
    many units were measured.

    Error:
        one unit at a time: errors of different units are taken to add up.
    """
    ends = _ends(model)
    errors: dict[str, list[float]] = {probe.unit.output.name: [] for probe in probes}
    done = 0
    with ThreadPoolExecutor(min(_THREADS, cores())) as pool:
        sections = Chain(model, sections_of(model, probes, ends), grids, pool)
        for feeds in samples:
            sample = _Sample(sections, *sections.clean(feeds), ends)
            for name, error in sample.errors(pool, near=near):
                errors[name].append(error)
                done += 1
                tick(done)
    found = {probe.unit.name: errors[probe.unit.output.name] for probe in probes}
    return {name: float(np.mean(each)) if each else 0.0 for name, each in found.items()}


@dataclass(frozen=True, slots=True)
class _Sample:
    """What the float model computes of a sample, and what quantizing each unit alone would add."""

    chain: Chain
    clean: Arrays
    deltas: Sequence[Future[Arrays]]
    """By section."""
    ends: Sequence[str]

    def errors(self, pool: Executor, *, near: bool) -> Iterator[tuple[str, float]]:
        """Yield perturbed tensors and what each does to the outputs."""
        sections, end = self.chain.sections, len(self.chain.sections)
        alone, together = [], []
        for at, section in enumerate(sections):
            stop = self.telling(at) if near else end
            alone.append([pool.submit(self.error, [n], at, stop) for n in section.perturbed])
            whole = stop < end and section.perturbed
            together.append(pool.submit(self.error, whole, at, end) if whole else None)
        try:
            for section, runs, total in zip(sections, alone, together, strict=True):
                found = [run.result() for run in runs]
                share = total.result() / max(sum(found), _LEAST) if total else 1.0
                yield from zip(section.perturbed, (share * error for error in found), strict=True)
        finally:  # interrupted: nobody waits for the rest
            for run in (*chain.from_iterable(alone), *filter(None, together)):
                run.cancel()

    def error(self, names: Sequence[str], start: int, stop: int) -> float:
        """Return squared error by squared signal of what section ``stop`` and later ones read.

        ``names`` are perturbed, of section ``start``.
        """
        found = self.deltas[start].result()
        deltas = {f"{name}{DELTA}": found[f"{name}{DELTA}"] for name in names}
        dirty = self.chain.dirty(self.clean, deltas, start, stop)
        return _relative_error({name: self.clean[name] for name in self.seen(stop)}, dirty)

    def telling(self, start: int) -> int:
        """Return where errors of section ``start`` can be told from one another: not far on."""
        end = len(self.chain.sections)
        stops = range(min(start + _NEAR, end), end)
        return next((stop for stop in stops if any(map(self._is_float, self.seen(stop)))), end)

    def seen(self, stop: int) -> Sequence[str]:
        """Return what tells of the error at ``stop``: what the rest of the model hangs on."""
        sections = self.chain.sections
        return self.ends if stop == len(sections) else sections[stop - 1].alive

    def _is_float(self, name: str) -> bool:
        value = self.clean[name]
        return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)


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
            ratios.append(_ratio(reference, np.asarray(dirty[name])))
    return float(np.mean(ratios)) if ratios else 0.0


def _ratio(reference: NDArray[np.generic], dirty: NDArray[np.generic]) -> float:
    """Return the energy of the difference by that of ``reference``, of what is finite in both."""
    kind = np.result_type(reference, np.float32)
    signal, found = (x.reshape(-1).astype(kind, copy=False) for x in (reference, dirty))
    with np.errstate(all="ignore"):
        error, energy = _energy(found - signal), _energy(signal)
        if not (_LEAST < energy < math.inf and math.isfinite(error)):
            known = np.isfinite(signal) & np.isfinite(found)
            signal, found = (x[known].astype(np.float64) for x in (signal, found))
            error, energy = _energy(found - signal), _energy(signal)
    return error / max(energy, _LEAST)


def _energy(values: NDArray[np.generic]) -> float:
    """Return the sum of squares; not finite when a value is not, or too large to be squared."""
    return float(np.dot(values, values))
