# SPDX-License-Identifier: Apache-2.0
"""What ``qhv-onnx compile`` prints when it is done: the report, on one screen."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qhyvit_onnx.report import BridgeRecord, FoldRecord, OutputRecord, Report, UnitRecord
from qhyvit_onnx.speed_records import PointRecord
from qhyvit_onnx.tables import beside, filled, labelled, megabytes, show, table

NUMBER = re.compile(r"(?<![\w./'-])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w./'-])")
"""A number that stands alone as a word."""

LISTED = 8
"""Outputs shown; the JSON report has them all."""

CURES = {"off": "left", "scale": "scaled", "shift": "shifted", "both": "scaled and shifted"}
"""What range folding did to a class, in words."""


def print_summary(report: Report, source: Path, written: Sequence[Path]) -> None:
    """Print the report of one compilation of ``source`` on stdout."""
    blocks = [
        _head(report, source),
        beside(_sizes(report), _closeness(report)),
        beside(_units(report), _why(report)),
        *([front_table(report.front)] if report.front else []),
        _graph(report),
        _passes(report),
        labelled([("written", path) for path in written] or [("written", "nothing (--dry-run)")]),
    ]
    show(blocks)


def slower(report: Report) -> str:
    """Return the warning when int8 lost against float here, or gains nothing; empty otherwise."""
    if report.outrun is not None:
        return (
            f"int8 takes {report.outrun.ratio:.2f}x the time of float on this machine: the model "
            f"stays float (--target {report.target} makes it int8 regardless)"
        )
    if not report.int8_units:
        return f"nothing runs int8: on {report.target} float is faster for this model"
    if report.latency is None or report.latency.ratio <= 1.0:
        return ""
    return (
        f"int8 takes {report.latency.ratio:.2f}x the time of float on this machine "
        f"(compiled for {report.target})"
    )


def _head(report: Report, source: Path) -> Table:
    data = report.data
    origin = " ".join(part for part in (data.kind, data.path) if part)
    fit = "" if data.deployable else ": a first look, NOT FOR DEPLOYMENT"
    return labelled([
        ("model", f"{source.name}, {report.precision} for {report.target}"),
        ("data", f"{data.samples} samples, {origin}{fit}"),
        *(("takes, gives", f"{name}: {what}") for name, what in report.interface.items()),
    ])  # fmt: skip


def _units(report: Report) -> Table:
    """Return how many units of each kind run int8 and float."""
    kinds = list(dict.fromkeys(unit.kind for unit in report.units))
    counts = Counter((unit.kind, unit.int8) for unit in report.units)
    rows = [(kind, counts[kind, True] or "", counts[kind, False] or "") for kind in kinds]
    made = filled(("unit!", "int8>", "float>"), rows)
    total = len(report.units)
    made.add_row("all", str(report.int8_units), str(total - report.int8_units), style="bold")
    return made


def _why(report: Report) -> RenderableType:
    """Return why units stay float, most frequent first, and what is outside of all units."""
    grouped = group_reasons([unit for unit in report.units if not unit.int8])
    made = filled(("why float", "units>"), grouped)
    if not report.float_nodes:
        return made
    ops = ", ".join(f"{count} {op}" for op, count in report.float_nodes.items())
    return Group(made, Text(f"\nfloat, no integer kernel worth using: {ops}"))


def group_reasons(units: Sequence[UnitRecord]) -> list[tuple[str, int]]:
    """Return (reason, how many units), reasons that differ in numbers only put together."""
    found: dict[str, list[str]] = {}
    for unit in units:
        kept = unit.reason.startswith("excluded")
        found.setdefault(
            unit.reason if kept else NUMBER.sub("#", unit.reason), []
        ).append(unit.reason)  # fmt: skip
    groups = [(_spanned(reasons), len(reasons)) for reasons in found.values()]
    return sorted(groups, key=lambda item: -item[1])


def _spanned(reasons: Sequence[str]) -> str:
    """Return the first reason, each number replaced by the range it has over ``reasons``."""
    columns = zip(*(NUMBER.findall(reason) for reason in reasons), strict=False)
    spans = [(min(column, key=float), max(column, key=float)) for column in columns]
    words = iter(low if low == high else f"{low} to {high}" for low, high in spans)
    return NUMBER.sub(lambda match: next(words, match.group()), reasons[0])


def _sizes(report: Report) -> RenderableType:
    """Return float and int8 side by side."""
    before, after = report.bytes_before, report.bytes_after
    made = table("!", "float>", "int8>", "ratio>")
    made.add_row("size", megabytes(before), megabytes(after), f"{after / max(before, 1):.2f}x")
    if report.latency is not None:
        both = report.latency.two_threads
        rows = [("CPU time", report.latency), *([("2 threads", both)] if both else [])]
        for label, found in rows:
            times = (f"{ms:.2f} ms" for ms in (found.float_ms, found.int8_ms))
            made.add_row(label, *times, f"{found.ratio:.2f}x")
    notes = ["CPU time of one run, one thread, here"]
    if report.latency is not None and report.latency.two_threads is not None:
        notes.append("2 threads: elapsed time")
    if (told := report.prediction) is not None:
        name = "CPU time" if told.unit == "ns" else "instructions"
        costs = (told.shown(told.in_float), told.shown(told.placed))
        made.add_row(f"{report.target}: {name}", *costs, f"{told.ratio:.2f}x")
        notes.append(f"{report.target}: predicted; all int8 {told.shown(told.full)}")
    return Group(made, *(Text(note, style="dim") for note in notes))


def front_table(front: Sequence[PointRecord]) -> Table:
    """Return what each placement of a sweep costs and loses, the fastest first."""
    lost = "top-1 lost>" if any(point.labelled for point in front) else "decisions lost>"
    headers = ("tried: int8 units>", "predicted>", lost, "within bound", "seconds>")
    rows = [
        (
            f"{point.int8_units} of {point.units}",
            f"{point.predicted_ratio:.2f}x",
            f"{point.drop:.2f} points" if point.labelled else f"{point.drop:.2f} %",
            "yes" if point.holds else "no",
            f"{point.seconds:.1f}",
        )
        for point in front
    ]
    return filled(headers, rows)


def _closeness(report: Report) -> RenderableType:
    """Return how close the outputs are, and on what that was measured."""
    rows = [_output(item) for item in report.outputs[:LISTED]]
    made = filled(("output", "SQNR>", "cosine>", "agreement>"), rows)
    held = "held back from calibration" if report.held_back else "that calibration saw too"
    samples = report.outputs[0].samples if report.outputs else 0
    told = f"on {samples} samples {held}"
    if report.arithmetic == "exact":
        told += "; exact integer sums, as ARM and VNNI have them (this CPU saturates)"
    if (more := len(report.outputs) - LISTED) > 0:
        told += f"; {more} more outputs in the JSON report"
    return Group(made, Text(told, style="dim"))


def _output(item: OutputRecord) -> tuple[str, str, str, str]:
    return (item.name, f"{item.sqnr_db:.1f} dB", f"{item.cosine:.5f}", f"{item.agreement:.1%}")


def _graph(report: Report) -> Table:
    """Return regions, bridges, folds and one-sided tensors, one line each; the JSON names them."""
    sides = Counter(region.side for region in report.regions)
    cures = Counter(CURES.get(fold.cure, fold.cure) for fold in report.folds)
    cured = Counter(item.cure for item in report.one_sided)
    return labelled([
        ("regions", _numbered(sides) or "none: nothing mixes positions"),
        ("bridges", "; ".join(_ways(report.bridges)) or "none"),
        ("folds", f"classes of channels: {_numbered(cures)}{_gain(report.folds)}" if cures
         else "no class of channels"),
        ("one-sided", f"tensors cured: {_numbered(cured, ' by ')}" if cured else "no tensor"),
    ])  # fmt: skip


def _numbered(counts: Mapping[str, int], between: str = " ") -> str:
    return ", ".join(f"{count}{between}{name}" for name, count in counts.items())


def _ways(bridges: Sequence[BridgeRecord]) -> Iterator[str]:
    """Yield how many bridges lead in and out, and at which sizes."""
    for direction in dict.fromkeys(bridge.direction for bridge in bridges):
        sizes = Counter(bridge.size for bridge in bridges if bridge.direction == direction)
        yield f"{sizes.total()} {direction} at {', '.join(sizes)}"


def _gain(folds: Sequence[FoldRecord]) -> str:
    """Return how far the predicted error fell, summed over all classes."""
    before = sum(fold.error_before for fold in folds)
    after = sum(fold.error_after for fold in folds)
    return f"; predicted error {after / before - 1:+.0%}" if before > 0.0 else ""


def _passes(report: Report) -> Table:
    """Return what each pass took; the notes are cut to the line, the JSON report has them whole."""
    made = table("pass!", "seconds>", "peak MB>", "did")
    ran = [item for item in report.passes if not item.note.startswith("off")]
    for item in ran:
        note = Text(item.note, no_wrap=True, overflow="ellipsis")
        made.add_row(item.name, f"{item.seconds:.1f}", f"{item.peak_mb:.0f}", note)
    off = [item.name for item in report.passes if item not in ran]
    seconds = sum(item.seconds for item in report.passes)
    peak = max((item.peak_mb for item in report.passes), default=0.0)
    told = f"off: {', '.join(off)}" if off else ""
    made.add_row("all", f"{seconds:.1f}", f"{peak:.0f}", told, style="bold")
    return made
