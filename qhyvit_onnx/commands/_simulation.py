# SPDX-License-Identifier: Apache-2.0
"""The options of ``eval`` that say what is simulated where there is no quantized file."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from qhyvit_onnx.commands import _options
from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.recipes import RECIPES

if TYPE_CHECKING:
    from qhyvit_onnx.simulator import Simulation

Command: TypeAlias = Callable[..., Any]

LISTED = ", ".join(name for name, recipe in RECIPES.items() if recipe.listed)

OPTIONS = (
    click.option(
        "--recipe",
        metavar="NAME",
        help=f"Simulate FLOAT quantized by a recipe, in place of QUANTIZED: {LISTED}.",
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
    config: CompileConfig

    def simulate(self, model: Path, preprocess: str | None) -> "Simulation":
        """Return ``model``, simulated; what is done is said on stderr."""
        from qhyvit_onnx.progress import Progress
        from qhyvit_onnx.simulator import simulate

        with Progress() as progress:
            return simulate(
                model, self.calibration, self.config, preprocess=preprocess, watcher=progress
            )


def simulation(command: Command) -> Command:
    """Let ``command`` take all of OPTIONS, as one argument ``wish``: None without --recipe."""
    names = inspect.signature(_wish).parameters

    @functools.wraps(command)
    def wrapped(**given: Any) -> object:  # noqa: ANN401 - settings, and options that are none
        shared = ("input_shapes", "seed")  # the data takes them too
        taken = {name: given[name] if name in shared else given.pop(name) for name in names}
        return command(wish=_wish(**taken), **given)

    found: Command = wrapped
    for option in reversed(OPTIONS):
        found = option(found)
    return found


def _wish(
    *,
    recipe: str | None,
    calib: str | None,
    calib_samples: int | None,
    precision: str | None,
    edge_precision: str | None,
    target: str | None,
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
    return Wish(calib, CompileConfig(**chosen))
