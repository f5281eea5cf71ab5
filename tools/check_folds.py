# SPDX-License-Identifier: Apache-2.0
"""Whether folding keeps the float model what it was, on every export of a folder.

usage: python tools/check_folds.py ZOO_DIR [--samples N]

ZOO_DIR is what ``tools/export_zoo.py`` writes: models and ``{size}_calib.npz`` beside them. Each
model goes through the passes up to range folding. Prints what was folded, by how much the output of
the folded float model differs from the model's own, as a fraction of its range, by how much the
model's own output differs when the input is changed by one part in a million, and how long layout,
bridges and folds took together. Exits 1 when folding makes a difference above 1e-4 that such a
change of the input does not make: nets with random weights can be chaotic.
"""

import argparse
from pathlib import Path

import numpy as np
from _bench import Feed, npz_feeds, table

from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.data import open_feeds
from qhyvit_onnx.facts import FLOAT, FOLDS
from qhyvit_onnx.model_io import input_specs, load_model
from qhyvit_onnx.pipeline import Watcher, default_pipeline, run
from qhyvit_onnx.runtime import Session
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import TARGETS

ALLOWED = 1e-4
TIMED = ("fold-norms", "layout", "detect-bridges", "fold-ranges")


def main() -> int:
    """Check every model; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--samples", type=int, default=4)
    args = parser.parse_args()
    rows = []
    for path in sorted(args.zoo.glob("*.onnx")):
        rows.append(check(path, args.zoo, args.samples))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    print("\n" + table(rows))
    wrong = sum(
        float(str(row["difference"])) > max(ALLOWED, float(str(row["by 1e-6 of input"])))
        for row in rows
    )
    print(f"{len(rows)} files, {wrong} changed by more than {ALLOWED:g}")
    return 1 if wrong else 0


def check(path: Path, zoo: Path, samples: int) -> dict[str, object]:
    """Fold one model and compare it with itself."""
    model = load_model(path)
    specs = input_specs(model)
    calib = npz_feeds(zoo / f"{specs[0].shape[-1]}_calib.npz", samples)
    state = State(model, CompileConfig(), open_feeds(calib, specs, samples=samples))
    passes = default_pipeline(state.config, TARGETS[0])
    until = next(i for i, item in enumerate(passes) if item.name == "fold-ranges") + 1
    steps = {step.name: step for step in run(passes[:until], state, Watcher())}
    cures = [fold.cure for fold in state.get(FOLDS)]
    before, after = Session(state.source), Session(state.get(FLOAT))
    shaken = [{name: x * np.float32(1 + 2**-20) for name, x in feed.items()} for feed in calib]
    return {
        "model": path.stem,
        "norms": steps["fold-norms"].outcome.changed,
        "classes": len(cures),
        "scaled": sum(cure in {"scale", "both"} for cure in cures),
        "shifted": sum(cure in {"shift", "both"} for cure in cures),
        "difference": f"{difference(before, calib, after, calib):.1e}",
        "by 1e-6 of input": f"{difference(before, calib, before, shaken):.1e}",
        "seconds": round(sum(steps[name].seconds for name in TIMED), 1),
    }


def difference(first: Session, feeds: list[Feed], second: Session, others: list[Feed]) -> float:
    """Return the largest difference of the outputs over their range."""
    pairs = [
        (first.run(feed), second.run(other)) for feed, other in zip(feeds, others, strict=True)
    ]
    gaps = []
    for name in first.outputs:
        want, got = (np.concatenate([pair[at][name] for pair in pairs]) for at in (0, 1))
        gaps.append(float(np.abs(want - got).max() / np.ptp(want)))
    return max(gaps)


if __name__ == "__main__":
    raise SystemExit(main())
