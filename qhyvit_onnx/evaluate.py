# SPDX-License-Identifier: Apache-2.0
"""Two models side by side on the same samples, streaming: the one comparison that everyone uses."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx

from qhyvit_onnx.data import Feed, Feeds
from qhyvit_onnx.data.labels import by_run
from qhyvit_onnx.errors import CompileError, ModelError
from qhyvit_onnx.interface import Coded, Interface, Runner
from qhyvit_onnx.metrics import Closeness, Comparison, decides
from qhyvit_onnx.runtime import Arithmetic, Arrays, Options, Session

SCHEMA = 1
"""Version of the JSON of ``eval``."""

Labels: TypeAlias = Sequence[tuple[int, ...]]
"""The class of every sample, in one group a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """A quantized model without a file. The fields are keys of the JSON."""

    recipe: str
    precision: str
    target: str
    deployable: bool
    """Whether integer kernels could run it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A float and a quantized model compared. The fields are the keys of the JSON."""

    schema_version: int
    float_model: str
    quantized_model: str
    float_bytes: int
    quantized_bytes: int
    data: str
    recipe: str
    samples: int
    labelled: bool
    arithmetic: str
    outputs: Mapping[str, Closeness]
    """By output name; with ``labelled``, top-1 where an output makes one decision a sample."""
    simulation: Simulated | None = None
    """What was simulated; None when there is a quantized file."""


def _unheard(_done: int) -> None:
    """Report progress to nobody."""


def evaluate(
    float_model: Path,
    quantized: Path,
    feeds: Feeds,
    *,
    threads: int = 0,
    arithmetic: Arithmetic = Arithmetic.STOCK,
    tick: Callable[[int], None] = _unheard,
) -> Evaluation:
    """Return how the model at ``quantized`` does beside the one at ``float_model``.

    ``arithmetic`` is how integer products are summed in the quantized one.
    """
    session = _session(quantized, Options(threads=threads, arithmetic=arithmetic))
    candidate = Coded(session, _interface(quantized), values=True)
    found = _evaluated(float_model, candidate, feeds, str(quantized), threads=threads, tick=tick)
    return replace(found, quantized_bytes=quantized.stat().st_size, arithmetic=str(arithmetic))


def evaluate_simulation(
    float_model: Path,
    runner: Runner,
    simulated: Simulated,
    feeds: Feeds,
    *,
    threads: int = 0,
    tick: Callable[[int], None] = _unheard,
) -> Evaluation:
    """Return how a quantized model that has no file does beside the one at ``float_model``."""
    name = f"simulation of {simulated.recipe}"
    found = _evaluated(float_model, runner, feeds, name, threads=threads, tick=tick)
    return replace(found, simulation=simulated)


def _evaluated(
    float_model: Path,
    candidate: Runner,
    feeds: Feeds,
    name: str,
    *,
    threads: int,
    tick: Callable[[int], None],
) -> Evaluation:
    """Return the comparison of a file with anything that runs."""
    reference = _session(float_model, Options(threads=threads))
    if set(reference.inputs) != set(candidate.inputs):
        raise ModelError(f"{name} reads {candidate.inputs}, {float_model} {reference.inputs}")
    labels, origin = by_run(feeds), feeds.origin
    return Evaluation(
        schema_version=SCHEMA,
        float_model=str(float_model),
        quantized_model=name,
        float_bytes=float_model.stat().st_size,
        quantized_bytes=0,
        data=" ".join(part for part in (str(origin.kind), origin.path) if part),
        recipe=origin.recipe,
        samples=origin.taken,
        labelled=bool(labels),
        arithmetic="float",
        outputs=compare(reference, candidate, feeds, labels=labels, tick=tick),
    )


def compare(
    reference: Runner,
    candidate: Runner,
    feeds: Iterable[Feed],
    *,
    labels: Labels = (),
    limit: int | None = None,
    blame: type[CompileError] = ModelError,
    tick: Callable[[int], None] = _unheard,
) -> dict[str, Closeness]:
    """Return, by output name, how close ``candidate`` is to ``reference`` over ``limit`` runs.

    ``labels`` are used for the outputs that make one decision a sample among enough classes; the
    others have no top-1.

    Error:
        ``blame`` when an output is missing or of another shape.
    """
    if missing := [name for name in reference.outputs if name not in candidate.outputs]:
        raise blame(f"the quantized model has no output {missing[0]!r}")
    sums: dict[str, Comparison] = {}
    scored: set[str] = set()
    for run, feed in enumerate(islice(feeds, limit)):
        want, got = reference.run(feed), candidate.run(feed, reference.outputs)
        want = {name: out for name, out in want.items() if isinstance(out, np.ndarray)}
        if run == 0:
            scored = _scored(want, labels)
        for name in want:  # sequences are outputs too, and cannot be compared
            if want[name].shape != got[name].shape:
                raise blame(f"output {name} has shape {got[name].shape}, want {want[name].shape}")
            sums.setdefault(name, Comparison()).add(
                want[name], got[name], labels[run] if name in scored else None
            )
        tick(run + 1)
    return {name: comparison.result() for name, comparison in sums.items()}


def _scored(outputs: Arrays, labels: Labels) -> set[str]:
    """Return the outputs that the labels can be about."""
    every = [label for group in labels for label in group]
    if not every or min(every) < 0:
        return set()
    return {name for name, out in outputs.items() if decides(out, len(labels[0]), max(every) + 1)}


def _interface(path: Path) -> Interface:
    """Return what the model at ``path`` takes and gives; one in the .ort format does not tell."""
    if path.suffix == ".ort":
        return Interface()
    return Interface.of(onnx.load(path, load_external_data=False))


def _session(path: Path, options: Options) -> Session:
    try:
        return Session(path, options)
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", node=error.node, hint=error.hint) from error
