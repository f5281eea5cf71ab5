# SPDX-License-Identifier: Apache-2.0
"""``qhv-onnx eval``: a float and a quantized, or simulated, model side by side on the same data."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qhyvit_onnx.commands import _options
from qhyvit_onnx.commands._options import STDOUT
from qhyvit_onnx.commands._samples import Samples, samples
from qhyvit_onnx.commands._simulation import Wish, simulation
from qhyvit_onnx.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qhyvit_onnx.data import Feeds
    from qhyvit_onnx.evaluate import Evaluation
    from qhyvit_onnx.metrics import Closeness


@click.command()
@click.argument("float_model", metavar="FLOAT", type=_options.MODEL_FILE)
@click.argument("quantized", metavar="[QUANTIZED]", required=False, type=_options.MODEL_FILE)
@samples
@simulation
@click.option("--threads", type=click.IntRange(min=0), default=0, help="0: as many as cores.")
@click.option(
    "--arithmetic",
    type=click.Choice(["stock", "exact"]),
    default="stock",
    show_default=True,
    help="exact: integer sums never saturate, as on ARM and VNNI, whatever this CPU.",
)
@_options.json_out
def command(
    *,
    float_model: Path,
    quantized: Path | None,
    wish: Wish | None,
    samples: Samples,
    threads: int,
    arithmetic: str,
    json_out: str | None,
) -> None:
    """Compare FLOAT and QUANTIZED on DATA: top-1 with labels, else agreement; SQNR, cosine.

    With --recipe, FLOAT is compared with a simulation of itself, quantized by any recipe: also by
    those whose grids no integer kernel takes.
    """
    from qhyvit_onnx.model_io import input_specs, load_model

    if (quantized is None) == (wish is None):
        raise ConfigError("give either QUANTIZED or --recipe")
    if wish is not None and arithmetic != "stock":
        raise ConfigError("--arithmetic is for QUANTIZED: a simulation never saturates")
    _options.check_json(json_out, [path for path in (float_model, quantized) if path])
    feeds = samples.open(input_specs(load_model(float_model)))
    if wish is not None:
        found = _simulated(float_model, wish, feeds, threads)
    else:
        assert quantized is not None
        found = _measured(float_model, quantized, feeds, threads, arithmetic)
    if samples.labels and not _scored(found):
        raise DataError(
            f"labels {samples.labels} fit no output: none decides among so many classes"
        )
    if json_out != STDOUT:
        _show(found)
    if json_out:
        _options.write_json(json_out, json.dumps(asdict(found), indent=2))


def _measured(
    float_model: Path, quantized: Path, feeds: "Feeds", threads: int, arithmetic: str
) -> "Evaluation":
    from qhyvit_onnx.evaluate import evaluate
    from qhyvit_onnx.runtime import Arithmetic

    sums = Arithmetic(arithmetic)
    with _bar(len(feeds)) as tick:
        return evaluate(float_model, quantized, feeds, threads=threads, arithmetic=sums, tick=tick)


def _simulated(float_model: Path, wish: Wish, feeds: "Feeds", threads: int) -> "Evaluation":
    from qhyvit_onnx.evaluate import Simulated, evaluate_simulation

    made = wish.simulate(float_model)
    facts = made.facts
    told = Simulated(
        recipe=facts.recipe,
        precision=facts.precision,
        target=facts.target,
        deployable=not facts.undeployable,
    )
    with _bar(len(feeds)) as tick:
        return evaluate_simulation(float_model, made, told, feeds, threads=threads, tick=tick)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """Give a function that shows how many runs are done: a bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("eval", total=total)
        yield lambda done: bars.update(task, completed=done)


def _show(found: "Evaluation") -> None:
    from qhyvit_onnx.tables import labelled, megabytes, show

    unused = "its labels fit no output" if found.labelled else "no labels"
    told = f"{found.samples} samples, {found.data}" + ("" if _scored(found) else f", {unused}")
    rows = [
        ("float", f"{found.float_model}, {megabytes(found.float_bytes)}"),
        _candidate(found),
        ("data", told),
        ("recipe", found.recipe),
        ("sums", f"{found.arithmetic} integer arithmetic" if found.arithmetic == "exact" else ""),
    ]
    show([labelled(row for row in rows if row[1]), _outputs(found)])


def _candidate(found: "Evaluation") -> tuple[str, str]:
    """Return what the float model is compared with."""
    from qhyvit_onnx.tables import megabytes

    told = found.simulation
    if told is None:
        return "quantized", f"{found.quantized_model}, {megabytes(found.quantized_bytes)}"
    fit = "" if told.deployable else ": no integer kernel takes its grids"
    return "simulation", f"{told.recipe}, {told.precision}, units of {told.target}{fit}"


def _outputs(found: "Evaluation") -> "RenderableType":
    """Return one line an output; top-1 columns only where there are labels."""
    from qhyvit_onnx.tables import filled

    scored = _scored(found)
    top1 = ("top-1 float>", "top-1 int8>", "drop>") if scored else ()
    rows = (
        (name, *(_top1(item) if scored else ()), *_close(item))
        for name, item in found.outputs.items()
    )
    return filled(("output", *top1, "agreement>", "SQNR>", "cosine>"), rows)


def _scored(found: "Evaluation") -> bool:
    """Tell whether labels could be used for any output."""
    return any(item.top1_float is not None for item in found.outputs.values())


def _top1(item: "Closeness") -> tuple[str, str, str]:
    if item.top1_float is None or item.top1_int8 is None:
        return "", "", ""
    drop = 100 * (item.top1_float - item.top1_int8)
    return f"{item.top1_float:.2%}", f"{item.top1_int8:.2%}", f"{drop:.2f} points"


def _close(item: "Closeness") -> tuple[str, str, str]:
    return f"{item.agreement:.2%}", f"{item.sqnr_db:.1f} dB", f"{item.cosine:.5f}"
