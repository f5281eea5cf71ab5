# SPDX-License-Identifier: Apache-2.0
"""Accuracy of compiled trained models, the float model measured in the same run.

usage: python tools/bench_accuracy.py [--ocr DIR] [--cifar DIR] [--target arm64] [--json F]

Always measures the demonstration model. ``--ocr`` is what ``tools/ocr_lines.py`` writes: figure is
the share of time steps where the argmax equals float's. ``--cifar`` holds ``models/*_cifar10.onnx``
and ``data/cifar10_{calib,eval}.npz``: figure is top-1. Every model is calibrated on 64 samples and
evaluated as emitted, in onnxruntime; beside it onnxruntime's own ``quantize_static``.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from _bench import Feed, Rows, best_arithmetic, npz_feeds, quantize_static, table

from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.data import open_feeds
from qhyvit_onnx.metrics import Closeness, Comparison
from qhyvit_onnx.model_io import input_specs
from qhyvit_onnx.runtime import Arithmetic, Options, Session

DEMO = Path(__file__).parent / "demo"
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True, slots=True)
class Case:
    """One model with its data."""

    model: Path
    calib: Sequence[Feed]
    evaluation: Sequence[Feed]
    labels: Sequence[int] | None = None
    shapes: tuple[int, ...] = ()


def main() -> None:
    """Measure, print a table, keep the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ocr", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--target", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: Rows = []
    for case in cases(args.ocr, args.cifar):
        rows.append(measure(case, CompileConfig(target=args.target, seed=args.seed)))
        print(table(rows[-1:]), flush=True)
    print("\n" + table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def cases(ocr: Path | None, cifar: Path | None) -> Iterator[Case]:
    """Yield every model whose data is there; say which are not."""
    yield demo_case()
    for name, folder in (("ocr", ocr), ("cifar", cifar)):
        if folder is None:
            print(f"(no --{name} folder given: those models are left out)")
    if ocr is not None:
        calib, lines = npz_feeds(ocr / "ocr_calib.npz"), npz_feeds(ocr / "ocr_eval.npz", 120)
        for model in sorted(ocr.glob("ppocr_*_rec.onnx")):
            yield Case(model, calib, lines, shapes=(1, 3, 48, 320))
    if cifar is not None:
        yield from cifar_cases(cifar)


def demo_case() -> Case:
    """Return the bundled model with its bundled pictures."""
    model = DEMO / "model.onnx"
    specs = input_specs(onnx.load(model))
    recipe = str(DEMO / "preprocess.toml")
    calib = open_feeds(DEMO / "calib", specs, preprocess=recipe)
    evaluation = open_feeds(DEMO / "eval", specs, preprocess=recipe)
    return Case(model, list(calib), list(evaluation), evaluation.labels)


def cifar_cases(folder: Path) -> Iterator[Case]:
    """Yield the models trained on CIFAR-10, calibrated on 64 of its training images."""
    calib, _ = _cifar(folder / "data" / "cifar10_calib.npz")
    images, labels = _cifar(folder / "data" / "cifar10_eval.npz")
    drawn = np.random.default_rng(0).permutation(len(calib))[:64]
    for model in sorted((folder / "models").glob("*_cifar10.onnx")):
        yield Case(model, [calib[int(i)] for i in drawn], images, labels)


def _cifar(path: Path) -> tuple[list[Feed], list[int]]:
    with np.load(path) as arrays:
        pixels, labels = arrays["x"], arrays["y"]
    scaled = (pixels / np.float32(255) - np.float32(CIFAR_MEAN)) / np.float32(CIFAR_STD)
    planes = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
    return [{"x": planes[i : i + 1]} for i in range(len(planes))], [int(y) for y in labels]


def measure(case: Case, config: CompileConfig) -> dict[str, object]:
    """Compile and evaluate one model."""
    feeds = open_feeds(case.calib, input_specs(onnx.load(case.model)), samples=64)
    compiled = compile_model(case.model, list(feeds), config)
    ours = compare(case, compiled.model, Arithmetic(compiled.report.arithmetic))
    with tempfile.TemporaryDirectory() as folder:
        static = quantize_static(case.model, case.calib, Path(folder) / "static.onnx")
        theirs = compare(case, static, best_arithmetic(static))
    row = {
        "model": case.model.stem,
        "target": compiled.report.target,
        "int8 units": f"{compiled.report.int8_units}/{len(compiled.report.units)}",
    }
    return row | _figures("", ours) | _figures("static ", theirs)


def _figures(prefix: str, item: Closeness) -> dict[str, object]:
    figures = asdict(item)
    floats = {} if prefix else {"float top-1": _percent(figures["top1_float"])}
    return floats | {
        f"{prefix}top-1": _percent(figures["top1_int8"]),
        f"{prefix}agreement": round(item.agreement, 4),
        f"{prefix}SQNR dB": round(item.sqnr_db, 1),
    }


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def compare(case: Case, model: onnx.ModelProto | Path, arithmetic: Arithmetic) -> Closeness:
    """Return how close ``model`` is to the float model on the evaluation samples."""
    reference, candidate = Session(case.model), Session(model, Options(arithmetic=arithmetic))
    comparison = Comparison()
    for index, feed in enumerate(case.evaluation):
        want, got = reference.run(feed), candidate.run(feed)
        labels = None if case.labels is None else [case.labels[index]]
        comparison.add(want[reference.outputs[0]], got[candidate.outputs[0]], labels)
    return comparison.result()


if __name__ == "__main__":
    main()
