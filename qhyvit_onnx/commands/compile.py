# SPDX-License-Identifier: Apache-2.0
"""``qhv-onnx compile``: a float model and data in, an int8 model and its report out."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from qhyvit_onnx.commands import _options
from qhyvit_onnx.commands._bound import Limit, bound, telling_front
from qhyvit_onnx.commands._options import STDOUT
from qhyvit_onnx.commands._settings import settings
from qhyvit_onnx.config import CompileConfig

if TYPE_CHECKING:
    from qhyvit_onnx.compiler import Compiled
    from qhyvit_onnx.progress import Loudness, Progress
    from qhyvit_onnx.report import Report


@dataclass(frozen=True, slots=True)
class Files:
    """Where the results go."""

    model: Path
    report: Path
    ort: Path | None = None

    @property
    def operators(self) -> Path | None:
        """What a reduced build of onnxruntime needs, beside the .ort file."""
        name = "required_operators_and_types.config"
        return None if self.ort is None else self.ort.with_name(f"{self.ort.stem}.{name}")

    @property
    def written(self) -> list[Path]:
        """Every file, in the order of the summary."""
        found = (self.model, self.report, self.ort, self.operators)
        return [path for path in found if path is not None]


@click.command()
@click.argument("model", type=_options.MODEL_FILE)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the int8 model goes  [default: MODEL.qdq.onnx, beside MODEL.onnx]",
)
@click.option("--overwrite", is_flag=True, help="Replace the output when it exists.")
@click.option(
    "--calib",
    "--calibration-data",
    "calib",
    metavar="DATA",
    help="Folder of images, image, .npy, .npz, folder of those, or the word random. "
    "Without it a few bundled images are used: for a first look only.",
)
@_options.preprocess
@settings
@bound
@_options.json_out
@click.option(
    "--emit",
    type=click.Choice(["ort"]),
    help="Also write the model in onnxruntime's own format, optimized for the platform of the "
    "target, and the operators that a reduced build needs.",
)
@click.option("--dry-run", is_flag=True, help="Do all the work, write no file.")
@click.option("-v", "--verbose", is_flag=True, help="Say where each unit went, and near-misses.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; warnings and errors stay.")
def command(
    *,
    model: Path,
    output: Path | None,
    overwrite: bool,
    calib: str | None,
    preprocess: str | None,
    config: CompileConfig,
    limit: Limit | None,
    json_out: str | None,
    emit: str | None,
    dry_run: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Quantize MODEL to int8 for stock onnxruntime.

    Writes the int8 model and, beside it, its report as JSON (with --json FILE, there instead).
    """
    from qhyvit_onnx.compiler import compile_model

    read = [model, *(Path(data) for data in (calib, limit.data if limit else None) if data)]
    files = None if dry_run else _plan(read, output, json_out, emit, overwrite=overwrite)
    config = replace(config, emit_ort=emit == "ort")
    with telling_front(), _progress(_loudness(quiet=quiet, verbose=verbose)) as progress:
        compiled = compile_model(
            model, calib, config,
            preprocess=preprocess, watcher=progress, bound=limit.bound() if limit else None,
        )  # fmt: skip
    if files:
        _write(files, compiled)
    _tell(compiled.report, model, files, json_out)


def _loudness(*, quiet: bool, verbose: bool) -> "Loudness":
    from qhyvit_onnx.progress import Loudness

    loud = Loudness.VERBOSE if verbose else Loudness.NORMAL
    return Loudness.QUIET if quiet else loud


def _progress(loudness: "Loudness") -> "Progress":
    """Return bars when stderr is a terminal that can show them, plain lines otherwise."""
    from qhyvit_onnx.progress import Loudness, Progress

    if loudness is Loudness.QUIET or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return Progress(loudness)
    from qhyvit_onnx.bars import Bars

    return Bars(loudness)


def _plan(
    read: Sequence[Path],
    output: Path | None,
    json_out: str | None,
    emit: str | None,
    *,
    overwrite: bool,
) -> Files:
    """Return where the results go; raise, before any long work, when they could not be written.

    ``read``: what must not be overwritten, the model first.
    """
    from qhyvit_onnx.output import Overwrite, check_output

    output = output or read[0].with_name(f"{read[0].stem}.qdq.onnx")
    beside = output.with_name(f"{output.stem}.report.json")
    report = beside if json_out in (None, STDOUT) else Path(json_out)
    rule = Overwrite.REPLACE if overwrite else Overwrite.REFUSE
    check_output(output, rule, inputs=read)
    files = Files(output, report, output.with_suffix(".ort") if emit else None)
    for index, path in enumerate(files.written[1:], 1):
        check_output(path, rule, inputs=[*read, *files.written[:index]])
    return files


def _write(files: Files, compiled: "Compiled") -> None:
    """Write all results; when one cannot be written, none is there.

    Each is complete on the disk, under a temporary name, before the next is begun; the model comes
    last and is put in place first.
    """
    from qhyvit_onnx.output import model_bytes, save_atomically

    contents = {
        files.model: model_bytes(compiled.model),
        files.report: f"{compiled.report.model_dump_json(indent=2)}\n".encode(),
    }
    if compiled.ort is not None and files.ort is not None and files.operators is not None:
        contents |= {
            files.ort: compiled.ort.model,
            files.operators: compiled.ort.operators.encode(),
        }

    def save(paths: list[Path]) -> None:
        *before, path = paths

        def this_then_others(stream: BinaryIO) -> None:
            stream.write(contents[path])
            stream.flush()
            os.fsync(stream.fileno())
            if before:
                save(before)

        save_atomically(path, this_then_others)

    save(list(contents))


def _tell(report: "Report", model: Path, files: Files | None, json_out: str | None) -> None:
    """Put the result on stdout, and on stderr what must not be overlooked."""
    from qhyvit_onnx.progress import not_deployable, warn
    from qhyvit_onnx.summary import print_summary, slower

    if json_out == STDOUT:
        click.echo(report.model_dump_json(indent=2))
    else:
        print_summary(report, model, files.written if files else [])
    if not report.data.deployable:
        warn(not_deployable(report.data.kind))
    if line := slower(report):
        warn(line)
