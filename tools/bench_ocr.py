# SPDX-License-Identifier: Apache-2.0
"""Words that compiled text recognisers still read, the float models measured in the same run.

usage: python tools/bench_ocr.py DIR [--target arm64] [--effort fast] [--json F]

DIR is what ``tools/ocr_lines.py`` writes: ``ppocr_*_rec.onnx``, calibration lines, 120 lines for
the per-step comparison. Word accuracy is measured on 500 more lines with one word each, harder to
see (``_lines.WORDS``); a word counts when every letter is right. Agreement is the share of time
steps where the argmax equals float's. The compiled model is read as emitted, in onnxruntime.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _bench import Feed, Rows, npz_feeds, table
from _lines import WORDS, Lines, lines
from ocr_lines import CALIB_LINES, EVAL_LINES, decode, stored_symbols

from qhyvit_onnx.compiler import Compiled, compile_model
from qhyvit_onnx.config import DEVICES, CompileConfig, Effort, Extent
from qhyvit_onnx.metrics import Closeness, Comparison
from qhyvit_onnx.runtime import Arithmetic, Options, Session
from qhyvit_onnx.units import LAYERS

WORD_LINES, WORD_SEED = 500, 3


@dataclass(slots=True)
class Score:
    """How two models read the same words."""

    lines: int = 0
    float_right: int = 0
    right: int = 0
    lost: int = 0
    """Read by the float model only."""
    won: int = 0
    """Read by the compiled model only."""
    steps: Comparison = field(default_factory=Comparison)

    def add(self, word: str, scores: tuple[Lines, Lines], symbols: Sequence[str]) -> None:
        """Take one line; ``scores`` of the float and of the compiled model, (1, steps, classes)."""
        before, after = (decode(item, symbols)[0] == word for item in scores)
        self.lines += 1
        self.float_right += before
        self.right += after
        self.lost += before and not after
        self.won += after and not before
        self.steps.add(*scores)

    @property
    def drop(self) -> float:
        """Points of word accuracy that compilation costs."""
        return 100 * (self.float_right - self.right) / self.lines


class Pair:
    """The float model and what was compiled from it, run on the same lines."""

    def __init__(self, model: Path, compiled: Compiled) -> None:
        """Open both, the compiled one with the arithmetic of its target."""
        arithmetic = Arithmetic(compiled.report.arithmetic)
        self._sessions = Session(model), Session(compiled.model, Options(arithmetic=arithmetic))
        self._symbols = stored_symbols(model)

    def read(self, x: Lines, words: Sequence[str]) -> Score:
        """Return how both read lines ``x``, (N, 3, 48, width), that say ``words``."""
        score = Score()
        for at, word in enumerate(words):
            before, after = (self._run(session, x[at : at + 1]) for session in self._sessions)
            score.add(word, (before, after), self._symbols)
        return score

    def compare(self, feeds: Sequence[Feed]) -> Closeness:
        """Return how close both are on ``feeds``."""
        comparison = Comparison()
        for feed in feeds:
            (x,) = feed.values()
            comparison.add(*(self._run(session, x) for session in self._sessions))
        return comparison.result()

    @staticmethod
    def _run(session: Session, x: Lines) -> Lines:
        return np.asarray(session.run({session.inputs[0]: x})[session.outputs[0]], np.float32)


def measure(
    model: Path, folder: Path, config: CompileConfig, words: tuple[Lines, Sequence[str]]
) -> dict[str, Any]:
    """Compile and evaluate one recogniser; accuracies and shares in percent."""
    start = time.perf_counter()
    calib = npz_feeds(folder / "ocr_calib.npz", CALIB_LINES)
    compiled = compile_model(model, _named(calib, model), config)
    seconds = time.perf_counter() - start
    pair = Pair(model, compiled)
    standard = pair.compare(npz_feeds(folder / "ocr_eval.npz", EVAL_LINES))
    score = pair.read(*words)
    return {
        "model": model.stem,
        "target": compiled.report.target,
        "float words": round(100 * score.float_right / score.lines, 1),
        "words": round(100 * score.right / score.lines, 1),
        "drop": round(score.drop, 1),
        "lost/won": f"{score.lost}/{score.won}",
        f"steps {EVAL_LINES}": round(standard.agreement, 4),
        f"steps {score.lines}": round(score.steps.result().agreement, 4),
        "SQNR dB": round(standard.sqnr_db, 1),
        **_placed(compiled),
        "seconds": round(seconds),
    }


def _named(feeds: Sequence[Feed], model: Path) -> list[Feed]:
    """Return ``feeds`` under the name of the input of ``model``."""
    name = onnx.load(model, load_external_data=False).graph.input[0].name
    return [dict.fromkeys([name], next(iter(feed.values()))) for feed in feeds]


def _placed(compiled: Compiled) -> dict[str, Any]:
    """Return what runs on integer kernels, and the share of layers with weights left float."""
    report = compiled.report
    layers = [unit for unit in report.units if unit.kind in LAYERS]
    left = sum(not unit.int8 for unit in layers)
    return {
        "int8 units": f"{report.int8_units}/{len(report.units)}",
        "layers float %": round(100 * left / len(layers), 1),
    }


def main() -> None:
    """Measure every recogniser in the folder, print a table, keep the figures as JSON."""
    args = _arguments()
    config = CompileConfig(
        target=args.target,
        precision=args.precision,
        recipe=args.recipe,
        effort=Effort(args.effort) if args.effort else None,
        device=args.device,
        placement=Extent(args.placement),
        calib_samples=CALIB_LINES,
        seed=args.seed,
    )
    models = sorted(args.folder.glob(args.models))
    if not models:
        raise SystemExit(f"{args.folder} has no {args.models}; run tools/ocr_lines.py on it")
    words = lines(args.lines, WORD_SEED, difficulty=WORDS)
    rows: Rows = []
    for model in models:
        rows.append(measure(model, args.folder, config, words))
        print(table(rows[-1:]), flush=True)
    print("\n" + table(rows))
    if args.json:
        args.json.write_text(json.dumps({"settings": _settings(args), "rows": rows}, indent=1))


def _arguments() -> argparse.Namespace:
    default = CompileConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--models", default="ppocr_*_rec.onnx", metavar="GLOB")
    parser.add_argument("--lines", type=int, default=WORD_LINES)
    parser.add_argument("--target", default=default.target)
    parser.add_argument("--precision", default=default.precision)
    parser.add_argument("--recipe", default=default.recipe)
    parser.add_argument("--effort", choices=[str(item) for item in Effort])
    parser.add_argument("--device", default=default.device, choices=DEVICES)
    parser.add_argument(
        "--placement", default=str(default.placement), choices=[str(item) for item in Extent]
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures depend on besides the models."""
    return {key: item for key, item in vars(args).items() if key not in {"folder", "json"}}


if __name__ == "__main__":
    main()
