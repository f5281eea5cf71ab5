# SPDX-License-Identifier: Apache-2.0
"""``qhv-onnx profile``: the cost table of the machine it runs on."""

import platform
import sys
from pathlib import Path

import click

from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.output import Overwrite, check_output, save_atomically


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE.toml",
    help="Where the table goes; compile --target FILE.toml takes it.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE.toml if it is there.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(*, output: Path, overwrite: bool, quiet: bool) -> None:
    """Measure what layers cost on this machine, in float and in int8.

    Takes a few minutes on one core; let nothing else run meanwhile. Needs no data and no model.
    """
    if output.suffix != ".toml":
        raise ConfigError(f"output {output} does not end in .toml", hint="name it FILE.toml")
    check_output(output, Overwrite.REPLACE if overwrite else Overwrite.REFUSE)
    from qhyvit_onnx.costs.profile import profile
    from qhyvit_onnx.costs.table import dump_table

    name, host = output.stem, platform.node() or "this machine"
    if quiet:
        table = profile(name, host, lambda _done, _total: None)
    else:
        with click.progressbar(length=1000, label="measuring", file=sys.stderr) as bar:
            table = profile(name, host, lambda n, total: bar.update(1000 * n // total - bar.pos))
    save_atomically(output, dump_table(table).encode())
    click.echo(f"written  {output}")
