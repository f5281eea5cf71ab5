# SPDX-License-Identifier: Apache-2.0
"""The options of ``eval`` that say what is simulated where there is no quantized file."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qhyvit_onnx.commands import _options
from qhyvit_onnx.commands._options import Command
from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.recipes import listed

if TYPE_CHECKING:
    from qhyvit_onnx.simulator import Simulation

OPTIONS = (
    click.option(
        "--recipe",
        metavar="NAME",
        help=f"Simulate FLOAT quantized by a recipe, in place of QUANTIZED: {listed()}.",
    ),
    click.option(
        "--calib",
        "--calibration-data",
        "calib",
        metavar="DATA",
        help="With --recipe: what to calibrate on. Without it a few bundled images.",
    ),
    click.option("--calib-samples", type=int, help="With --recipe: samples used at most."),
    click.option("--precision", metavar="wXaY", help="With --recipe: bits, X and Y of 4, 6, 8."),
    click.option(
        "--edge-precision", metavar="wXaY", help="With --recipe: of the first and the last layer."
    ),
    click.option("--target", metavar="CPU", help="With --recipe: whose units are quantized."),
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What shall be simulated."""

    calibration: str | None
    preprocess: str | None
    config: CompileConfig

    def simulate(self, model: Path) -> "Simulation":
        """Return ``model``, simulated; what is done is said on stderr."""
        from qhyvit_onnx.progress import Progress
        from qhyvit_onnx.simulator import simulate

        with Progress() as progress:
            return simulate(
                model, self.calibration, self.config, preprocess=self.preprocess, watcher=progress
            )


def simulation(command: Command) -> Command:
    """Let ``command`` take all of OPTIONS, as one argument ``wish``: None without --recipe.

    To be put below ``samples``, whose options it takes too.
    """
    return _options.gathered(command, OPTIONS, _wish, "wish")


def _wish(
    *,
    recipe: str | None,
    calib: str | None,
    calib_samples: int | None,
    precision: str | None,
    edge_precision: str | None,
    target: str | None,
    preprocess: str | None,
    input_shapes: tuple[str, ...],
    seed: int,
) -> Wish | None:
    """Return what is wished for; ConfigError when there is no recipe to do it by."""
    settings = {
        "calib_samples": calib_samples,
        "precision": precision,
        "edge_precision": edge_precision,
        "target": target,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if recipe is None:
        if alone := [*given, *(["calib"] if calib else [])]:
            raise ConfigError(f"--{alone[0].replace('_', '-')} goes with --recipe")
        return None
    shapes = _options.shapes(input_shapes)
    chosen: dict[str, Any] = {**given, "recipe": recipe, "input_shapes": shapes, "seed": seed}
    return Wish(calib, preprocess, CompileConfig(**chosen))
