# SPDX-License-Identifier: Apache-2.0
"""What folding is worth: int8 accuracy with folding off, of norms only, and of ranges.

usage: python tools/bench_folding.py [--cifar DIR] [--models NAME ...] [--ocr DIR] [--json F]

``--cifar`` holds ``models/*_cifar10.onnx`` and ``data/cifar10_{calib,eval}.npz``. Its MobileViT, or
the models named, are measured as they are and with a spread of 100x and offsets of 20 sigma
injected at their bridges (``tools/injection.py``: the float output stays the same). ``--ocr`` is
what ``tools/ocr_lines.py`` writes; those models are measured as they are. All are calibrated on 64
samples and evaluated as emitted, in onnxruntime, with the accuracy guard off and on: it leaves
float what suffers, so only without it does the table show what the scales alone can hold.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from _bench import Rows, table
from _cases import Case, cifar_cases, ocr_cases
from _trial import compare
from injection import Dose, Signs, inject

from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig, Folding, Guard, Scope, Verification
from qhyvit_onnx.runtime import Arithmetic, Options, Session

GUARDS = {"off": Guard(samples=0), "on": Guard()}


@dataclass(frozen=True, slots=True)
class Subject:
    """One model under one name in the table."""

    name: str
    case: Case
    scopes: tuple[Scope, ...] = tuple(Scope)


def main() -> None:
    """Measure, print the tables, keep the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--models", nargs="+", default=["mobilevit"], help="of --cifar")
    parser.add_argument("--ocr", type=Path)
    parser.add_argument("--images", type=int, help="evaluate on so many only")
    parser.add_argument("--target", default="arm64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects(args, Path(folder)):
            case = subject.case
            case = replace(case, evaluation=case.evaluation[: args.images])
            for row in measure(replace(subject, case=case), args.target, args.seed):
                rows.append(row)
                print(table([row]), flush=True)
    print("\n" + table(rows))
    if rows:
        print("\n" + table(side_by_side(rows)))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def subjects(args: argparse.Namespace, folder: Path) -> Iterator[Subject]:
    """Yield every model whose data is there; say which are not."""
    for name in ("cifar", "ocr"):
        if getattr(args, name) is None:
            print(f"(no --{name} folder given: those models are left out)")
    if args.cifar is not None:
        for model in args.models:
            yield from with_injected(args.cifar, f"{model}_cifar10", folder, args.seed)
    if args.ocr is not None:
        for case in ocr_cases(args.ocr):
            yield Subject(case.name, case, (Scope.OFF, Scope.ALL))


def with_injected(cifar: Path, model: str, folder: Path, seed: int) -> Iterator[Subject]:
    """Yield a trained model as it is, and injected with offsets to both sides and to one."""
    if not (cifar / "models" / f"{model}.onnx").exists():
        print(f"(no models/{model}.onnx in {cifar}: it is left out)")
        return
    case = next(case for case in cifar_cases(cifar) if case.name == model)
    case = replace(case, calib=case.drawn(64, 0))
    yield Subject(model, case)
    for signs in Signs:
        path = folder / f"{model}.{signs}.onnx"
        injected = inject(onnx.load(case.model), case.calib, Dose(signs=signs, seed=seed))
        onnx.save(injected.model, path)
        name = f"{model}, injected, {signs} signs, {len(injected.sites)} sites"
        yield Subject(name, replace(case, model=path))


def measure(subject: Subject, target: str, seed: int) -> Iterator[dict[str, Any]]:
    """Compile with each guard and scope; yield one row each."""
    for guard, setting in GUARDS.items():
        for scope in subject.scopes:
            config = CompileConfig(
                target=target,
                seed=seed,
                guard=setting,
                folding=Folding(scope=scope),
                verification=Verification(rounds=0),
            )
            keys = {"model": subject.name, "guard": guard, "fold": str(scope)}
            yield keys | figures(subject.case, config)


def figures(case: Case, config: CompileConfig) -> dict[str, Any]:
    """Return what one setting makes of one model."""
    compiled = compile_model(case.model, case.calib, config)
    report = compiled.report
    session = Session(compiled.model, Options(arithmetic=Arithmetic(report.arithmetic)))
    found = compare(case, session)
    cures = Counter(item.cure for item in report.one_sided)
    return {
        "float top-1": percent(found.top1_float),
        "top-1": percent(found.top1_int8),
        "agreement": round(found.agreement, 4),
        "SQNR dB": round(found.sqnr_db, 1),
        "int8 units": f"{report.int8_units}/{len(report.units)}",
        "cured": ", ".join(f"{cure} {count}" for cure, count in sorted(cures.items())) or "-",
    }


def percent(share: float | None) -> str:
    """Return a fraction as percent; a dash where there are no labels."""
    return "-" if share is None else f"{100 * share:.2f}"


def side_by_side(rows: Sequence[dict[str, Any]]) -> Rows:
    """Return one row a model and guard: top-1, or agreement without labels, by scope."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        labelled = row["top-1"] != "-"
        key = row["model"], row["guard"]
        entry = found.setdefault(
            key,
            {"model": key[0], "guard": key[1], "figure": "top-1" if labelled else "agreement"}
            | {"float": row["float top-1"]}
            | dict.fromkeys(map(str, Scope), "-"),
        )
        entry[row["fold"]] = row["top-1"] if labelled else row["agreement"]
    return list(found.values())


if __name__ == "__main__":
    main()
