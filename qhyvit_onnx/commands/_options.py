# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and where their JSON goes."""

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click

from qhyvit_onnx.config import CompileConfig

Command: TypeAlias = Callable[..., Any]

DEFAULTS = CompileConfig()
STDOUT = "-"

MODEL_FILE = click.Path(exists=True, path_type=Path)

input_shape = click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    metavar="NAME:1,3,224,224",
    help="Shape of an input with free dims; may be repeated. 1x3x224x224 does too.",
)
preprocess = click.option(
    "--preprocess",
    metavar="RECIPE",
    help="How images become inputs: imagenet, unit, symmetric, or a .toml file.",
)
seed = click.option(
    "--seed", type=int, default=DEFAULTS.seed, show_default=True, help="Seeds every draw."
)
target = click.option(
    "--target",
    default=DEFAULTS.target,
    show_default=True,
    metavar="CPU",
    help="auto (this machine; compile stays float where int8 is measured to be slower), arm64, "
    "arm64-i8mm, arm64-base, x64-vnni, x64-avx2, or a .toml of qhv-onnx profile.",
)
json_out = click.option(
    "--json", "json_out", metavar="FILE|-", help="Write the result as JSON; - is stdout."
)


def gathered(
    command: Command,
    options: Sequence[Callable[[Command], Command]],
    make: Callable[..., object],
    name: str,
    *,
    shared: Sequence[str] = (),
) -> Command:
    """Let ``command`` take all of ``options``, as one argument: what ``make`` returns of them.

    ``shared``: arguments of ``make`` that are options of somebody else, who takes them too.
    """
    wanted = inspect.signature(make).parameters

    @functools.wraps(command)
    def wrapped(**given: Any) -> object:  # noqa: ANN401 - these options, and others
        taken = {key: given[key] if key in shared else given.pop(key) for key in wanted}
        return command(**{name: make(**taken)}, **given)

    found: Command = wrapped
    for option in reversed(options):
        found = option(found)
    return found


def shapes(given: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of ``--input-shape`` by input name."""
    from qhyvit_onnx.data.input_spec import parse_input_shape

    return dict(parse_input_shape(text) for text in given)


def check_json(where: str | None, inputs: Sequence[Path]) -> None:
    """Raise before long work when the JSON file could not be written; it may be replaced."""
    from qhyvit_onnx.output import Overwrite, check_output

    if where not in (None, STDOUT):
        check_output(Path(where), Overwrite.REPLACE, inputs=inputs)


def write_json(where: str, text: str) -> None:
    """Put ``text`` on stdout or into a file."""
    from qhyvit_onnx.output import save_atomically

    if where == STDOUT:
        click.echo(text)
    else:
        save_atomically(Path(where), f"{text}\n".encode())
