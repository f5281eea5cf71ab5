# SPDX-License-Identifier: Apache-2.0
"""Accuracy: recipe x precision x model, over several draws of calibration samples.

usage: python tools/bench_accuracy.py [--ocr DIR] [--cifar DIR] [--extra MODEL.onnx ...]
    [--models NAME ...] [--recipes qhv minmax ...] [--precisions w8a8 ...] [--effort max]
    [--samples 64] [--draws 3] [--views 8] [--target arm64] [--save FILE.json]

Always knows the demonstration model. ``--ocr`` is what ``tools/ocr_lines.py`` writes: the figure is
the share of time steps where the argmax equals float's. ``--cifar`` holds ``models/*_cifar10.onnx``
and ``data/cifar10_{calib,eval}.npz``, ``--extra`` more such models: the figure is top-1.

``--views`` measures top-1 on so many views of each picture as well, mirrored and moved by two
pixels: on the plain ones alone, differences of tenths of a point are chance.

The float model is measured in the same run. What can be emitted is measured as emitted, in
onnxruntime; "simulation off by" is by how many points the simulation of the same model differs on
the first 1,000 samples. Recipes that no integer kernel can run are simulated, and say so. Beside
the recipes: ort-minmax and ort-percentile, onnxruntime's own ``quantize_static``.

``--save`` keeps every measurement as it is made; what a file holds already is not measured again.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from _bench import Rows, table
from _cases import VIEWS, cases
from _trial import Folders, Trial, perform, possible

from qhyvit_onnx.config import CompileConfig

KEYS = tuple(Trial.__dataclass_fields__)
DEFAULTS = CompileConfig()


def main() -> None:
    """Measure what is missing, print and keep everything."""
    args = parser(__doc__).parse_args()
    publish(markdown(measure(args)), args.save)


def measure(args: argparse.Namespace) -> Rows:
    """Return the rows of everything that was asked for; measure those that are not kept yet."""
    folders = Folders(args.ocr, args.cifar, tuple(args.extra))
    for name in ("ocr", "cifar"):
        if getattr(args, name) is None:
            print(f"(no --{name} folder given: those models are left out)")
    rows: Rows = json.loads(args.save.read_text()) if args.save and args.save.exists() else []
    wanted = list(trials(args, folders))
    for trial in wanted:
        if any(_key(row) == _key_of(trial) for row in rows):
            continue
        rows.append(perform(trial, folders))
        print(table([shown(rows[-1:])]), flush=True)
        if args.save:
            args.save.write_text(json.dumps(rows, indent=1))
    chosen = {_key_of(trial) for trial in wanted}
    return [row for row in rows if _key(row) in chosen]


def publish(text: str, save: Path | None) -> None:
    """Print the table, and keep it beside the measurements."""
    print("\n" + text)
    if save:
        save.with_suffix(".md").write_text(text + "\n")


def parser(about: str | None) -> argparse.ArgumentParser:
    """Return the options of a benchmark that measures trials."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ocr", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--extra", type=Path, nargs="*", default=[])
    parser.add_argument("--models", nargs="*", help="names of model files; all by default")
    parser.add_argument("--recipes", nargs="+", default=["qhv", "ort-minmax"])
    parser.add_argument("--precisions", nargs="+", default=["w8a8"])
    parser.add_argument("--effort", default="", help="fast, default or max")
    parser.add_argument("--placement", default=DEFAULTS.placement.value)
    parser.add_argument("--target", default="arm64")
    parser.add_argument("--samples", type=int, default=DEFAULTS.calib_samples)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--views", type=int, default=1, choices=range(1, len(VIEWS) + 1))
    parser.add_argument("--save", type=Path)
    return parser


def trials(args: argparse.Namespace, folders: Folders) -> Iterator[Trial]:
    """Yield everything that was asked for and is possible."""
    names = [case.name for case in cases(folders.ocr, folders.cifar, folders.extra)]
    for precision in args.precisions:
        for recipe in args.recipes:
            for name in names:
                for draw in range(args.draws):
                    trial = Trial(
                        model=name,
                        recipe=recipe,
                        precision=precision,
                        effort=args.effort,
                        placement=args.placement,
                        target=args.target,
                        samples=args.samples,
                        draw=draw,
                        views=args.views,
                    )
                    if possible(trial) and (not args.models or name in args.models):
                        yield trial


def markdown(rows: Rows) -> str:
    """Return every model's figures, means over draws, and the means over models."""
    by_model: dict[tuple[str, ...], Rows] = defaultdict(list)
    for row in rows:
        by_model[row["precision"], row["recipe"], row["model"]].append(row)
    lines = [shown(group) for group in by_model.values()]
    return "\n\n".join(filter(None, [table(lines), table(_summaries(by_model))]))


def shown(group: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return one line of the table: means over the draws, and their spread."""
    first = group[0]
    line = {name: str(first[name]) for name in ("model", "recipe", "precision", "form")}
    line |= {"effort": first["effort"] or "default", "int8 units": first["int8 units"]}
    labelled = first["top-1"] is not None
    line["float top-1"] = f"{100 * first['float top-1']:.2f}" if labelled else "-"
    line["drop"] = _spread(drops(group), 2) if labelled else "-"
    if first["views"] > 1 and labelled:
        line[f"drop, {first['views']} views"] = _spread(drops(group, " of views"), 2)
    line["agreement"] = _spread([row["agreement"] for row in group], 4)
    line["SQNR dB"] = _spread([row["sqnr_db"] for row in group], 1)
    apart = [abs(row["simulation off by"]) for row in group if row["simulation off by"] is not None]
    line["simulation off by"] = f"{max(apart):.2f}" if apart else "-"
    line["s"] = f"{mean(row['seconds'] for row in group):.0f}"
    line["MB"] = f"{max(row['peak_mb'] for row in group)}"
    return line


def drops(group: Sequence[dict[str, Any]], of: str = "") -> list[float]:
    """Return what each draw loses, in points of top-1."""
    return [100 * (row[f"float top-1{of}"] - row[f"top-1{of}"]) for row in group]


def _summaries(by_model: dict[tuple[str, ...], Rows]) -> Rows:
    """Return one line a precision and recipe: over all models that have labels."""
    found: dict[tuple[str, str], list[Rows]] = defaultdict(list)
    for (precision, recipe, _), group in by_model.items():
        if group[0]["top-1"] is not None:
            found[precision, recipe].append(group)
    return [
        {
            "precision": precision,
            "recipe": recipe,
            "models": len(groups),
            "mean drop": f"{mean(mean(drops(group)) for group in groups):.2f}",
            **_of_views(groups),
            "worst model": f"{max(mean(drops(group)) for group in groups):.2f}",
            "largest spread": f"{max(pstdev(drops(group)) for group in groups):.2f}",
            "mean SQNR dB": f"{mean(row['sqnr_db'] for group in groups for row in group):.1f}",
        }
        for (precision, recipe), groups in found.items()
    ]


def _of_views(groups: Sequence[Rows]) -> dict[str, str]:
    """Return the mean drop on all views, if they were looked at."""
    views = groups[0][0]["views"]
    found = mean(mean(drops(group, " of views")) for group in groups)
    return {f"mean drop, {views} views": f"{found:.2f}"} if views > 1 else {}


def _spread(numbers: Sequence[float], places: int) -> str:
    text = f"{mean(numbers):.{places}f}"
    return f"{text} ± {pstdev(numbers):.{places}f}" if len(numbers) > 1 else text


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEYS)


def _key_of(trial: Trial) -> tuple[Any, ...]:
    return tuple(getattr(trial, name) for name in KEYS)


if __name__ == "__main__":
    main()
