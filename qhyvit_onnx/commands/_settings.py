# SPDX-License-Identifier: Apache-2.0
"""The options of ``compile`` that say what the model shall be: together they are its config."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import click

from qhyvit_onnx.commands import _options
from qhyvit_onnx.commands._options import DEFAULTS
from qhyvit_onnx.config import CompileConfig, Folding, Scope
from qhyvit_onnx.errors import ConfigError

Command: TypeAlias = Callable[..., Any]

OPTIONS: Sequence[Callable[[Command], Command]] = (
    click.option(
        "--calib-samples",
        type=int,
        default=DEFAULTS.calib_samples,
        show_default=True,
        help="Samples used at most.",
    ),
    click.option(
        "--precision",
        default=DEFAULTS.precision,
        show_default=True,
        metavar="wXaY",
        help="Bits of weights and activations: X and Y of 4, 6, 8.",
    ),
    click.option(
        "--edge-precision",
        default=DEFAULTS.edge_precision,
        show_default=True,
        metavar="wXaY",
        help="The same for the first and the last layer, where it is finer.",
    ),
    click.option(
        "--bits",
        multiple=True,
        metavar="GLOB=wXaY",
        help="Precision of layers by node name; may be repeated, the last match wins.",
    ),
    _options.target,
    click.option(
        "--fold",
        type=click.Choice([scope.value for scope in Scope]),  # given an enum, click wants names
        default=DEFAULTS.folding.scope.value,
        show_default=True,
        help="What is folded into neighbouring layers: off (BatchNormalization and constant scales "
        "only), norms (LayerNorm and GroupNorm too), all (scale and shift of single channels too).",
    ),
    click.option(
        "--exclude",
        "--nodes-to-exclude",
        "exclude",
        multiple=True,
        metavar="GLOB",
        help="Nodes that stay float, by name; may be repeated.",
    ),
    _options.input_shape,
    _options.seed,
)


def settings(command: Command) -> Command:
    """Let ``command`` take all of OPTIONS, as one argument ``config``."""

    @functools.wraps(command)
    def wrapped(
        *,
        calib_samples: int,
        precision: str,
        edge_precision: str,
        bits: tuple[str, ...],
        target: str,
        fold: str,
        exclude: tuple[str, ...],
        input_shapes: tuple[str, ...],
        seed: int,
        **others: Any,  # noqa: ANN401 - the options that are no settings
    ) -> object:
        config = CompileConfig(
            precision=precision,
            edge_precision=edge_precision,
            bits=dict(map(_override, bits)),
            target=target,
            folding=Folding(scope=Scope(fold)),
            exclude=exclude,
            input_shapes=_options.shapes(input_shapes),
            calib_samples=calib_samples,
            seed=seed,
        )
        return command(config=config, **others)

    found: Command = wrapped
    for option in reversed(OPTIONS):
        found = option(found)
    return found


def _override(text: str) -> tuple[str, str]:
    """Return glob and precision of one ``--bits``."""
    glob, _, precision = text.rpartition("=")
    if not glob:
        raise ConfigError(f"--bits {text!r} is not GLOB=wXaY")
    return glob, precision
