# SPDX-License-Identifier: Apache-2.0
"""``qhv-onnx inspect``: what the compiler knows about a model, as tables, JSON and a drawing."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qhyvit_onnx.commands import _options
from qhyvit_onnx.commands._options import STDOUT
from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from qhyvit_onnx.inspection import Inspection
    from qhyvit_onnx.progress import Progress

SAMPLES = 16
"""Enough to see which channels are wide; grids that are shipped are searched on more."""


@click.command()
@click.argument("model", type=_options.MODEL_FILE)
@click.option(
    "--calib",
    "--calibration-data",
    "calib",
    metavar="DATA",
    help="Also run the float model on DATA (as in compile): channel spread, one-sided tensors "
    "and what is done about them.",
)
@click.option(
    "--calib-samples", type=int, default=SAMPLES, show_default=True, help="Samples used at most."
)
@_options.preprocess
@_options.target
@_options.input_shape
@_options.seed
@click.option(
    "--svg",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the regions and bridges of the network.",
)
@click.option(
    "-v", "--verbose", is_flag=True, help="List every unit, and the near-misses of every pass."
)
@_options.json_out
def command(
    *,
    model: Path,
    calib: str | None,
    calib_samples: int,
    preprocess: str | None,
    target: str,
    input_shapes: tuple[str, ...],
    seed: int,
    svg: Path | None,
    verbose: bool,
    json_out: str | None,
) -> None:
    """Show what is in MODEL, where convolutions and attention meet, and what would be int8.

    Needs no data and changes no model. With --calib also where one grid per tensor is too coarse.
    What would be int8 goes by speed alone; compile may leave more in float for accuracy.
    """
    from qhyvit_onnx.inspection import inspect_model
    from qhyvit_onnx.overview import print_overview
    from qhyvit_onnx.runtime import cpu_features
    from qhyvit_onnx.targets import find_target

    config = CompileConfig(
        target=target,
        input_shapes=_options.shapes(input_shapes),
        calib_samples=calib_samples,
        seed=seed,
    )
    _check_options(preprocess, calib)
    _check_outputs(model, calib, svg, json_out)
    cpu = find_target(target, cpu_features())
    with _progress() as bar:
        found = inspect_model(model, cpu, config, calib, preprocess=preprocess, watcher=bar)
    if svg:
        _draw(found, svg)
    if json_out != STDOUT:
        print_overview(found, verbose=verbose, drawing=svg)
    if json_out:
        _options.write_json(json_out, json.dumps(asdict(found), indent=2))


def _check_options(preprocess: str | None, calib: str | None) -> None:
    """Raise when an option would have no effect."""
    if preprocess and not calib:
        raise ConfigError("--preprocess is for images, and there are none", hint="give --calib too")


def _check_outputs(model: Path, calib: str | None, svg: Path | None, json_out: str | None) -> None:
    """Raise before long work when a result could not be written; either may be replaced."""
    from qhyvit_onnx.output import Overwrite, check_output

    read = [model, *([Path(calib)] if calib else [])]
    _options.check_json(json_out, read)
    if svg is None:
        return
    check_output(svg, Overwrite.REPLACE, inputs=read)
    if json_out not in {None, STDOUT} and Path(json_out).absolute() == svg.absolute():
        raise ConfigError(f"--svg and --json are both {svg}", hint="name two files")


def _progress() -> "Progress":
    """Return a bar on a terminal; elsewhere nothing is told but warnings."""
    from qhyvit_onnx.progress import Loudness, Progress

    if not sys.stderr.isatty():
        return Progress(Loudness.QUIET)
    from qhyvit_onnx.bars import Bars

    return Bars(Loudness.QUIET)


def _draw(found: "Inspection", svg: Path) -> None:
    from qhyvit_onnx.drawing import draw
    from qhyvit_onnx.output import save_atomically

    if found.quantized:
        raise ModelError(f"{found.path} is quantized already", hint="draw the float model")
    save_atomically(svg, draw(found).encode())
