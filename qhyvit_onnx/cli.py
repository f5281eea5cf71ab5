# SPDX-License-Identifier: Apache-2.0
"""The ``qhv-onnx`` command: a thin shell that turns whatever goes wrong into an exit status.

Only click is imported here; a sub-command is imported when it runs or shows its own help.
"""

import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from types import FrameType
from typing import NoReturn

import click

from qhyvit_onnx import __version__
from qhyvit_onnx.errors import CompileError, ConfigError, ResourceError

PROGRAM = "qhv-onnx"
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

COMMANDS: Mapping[str, str] = {
    "compile": "Quantize a float model to int8; write it and its report.",
    "inspect": "Show what is in a model, and what will be int8.",
    "explain": "Say why a node of a compiled model runs int8 or float.",
    "eval": "Compare a float and a quantized model on data.",
    "profile": "Measure what layers cost on this machine, for compile --target.",
    "passes": "List what compile does, in order.",
    "version": "Show the versions of this tool and of what it runs on.",
}
"""Every sub-command with its help, so that ``--help`` need not import one."""


class LazyGroup(click.Group):
    """Sub-commands by name: each lives in ``qhyvit_onnx.commands.<name>`` as ``command``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command called ``cmd_name``; None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"qhyvit_onnx.commands.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a usage error suggests the nearest name."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            ctx.fail(f"no such command {name!r} ({hint})")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Compile hybrid convolution + transformer models to int8 for stock onnxruntime.

    \b
      qhv-onnx compile model.onnx --calib folder_of_images

    Exit status: 0 done, 1 bug in this tool, 2 usage, 3 model, 4 data, 5 target missed, 6 output
    not written, 7 out of memory or time, 130 interrupted.
    """  # noqa: D301  \b keeps the line as it is in click's help


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; what stopped it is one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    signal.signal(signal.SIGTERM, _terminated)
    try:
        status = cli.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except CompileError as error:
        return _stop(str(error), error.exit_code)
    except click.ClickException as error:
        return _stop(_usage(error), ConfigError.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _stop("interrupted", INTERRUPTED)
    except MemoryError:
        return _stop("out of memory; free some, or use a larger machine", ResourceError.exit_code)
    except Exception:  # anything else is a bug, and a bug keeps its traceback
        click.echo(f"{PROGRAM}: this is a bug in {PROGRAM}; please report these lines:", err=True)
        traceback.print_exc()
        return CompileError.exit_code
    return status if isinstance(status, int) else 0


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Leave by an exception, so that temporary files are removed on the way out."""
    raise SystemExit(128 + signal.SIGTERM)


def _stop(line: str, status: int) -> int:
    click.echo(f"{PROGRAM}: error: {line}", err=True)
    return status


def _usage(error: click.ClickException) -> str:
    """Return the message of click in one line, with where to read on."""
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    path = context.command_path if context else PROGRAM
    return f"{message}; see {path} --help"
