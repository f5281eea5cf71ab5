# SPDX-License-Identifier: Apache-2.0
"""Time of compiled models over float, both models in turn in one process, so drift cancels.

usage: python tools/bench_latency.py MODEL.onnx=DATA.npz ... [--target auto] [--rounds 60]
    [--threads 1 2]

Beside ours: the same with everything on integers that has an integer kernel (``--placement full``),
and onnxruntime's own ``quantize_static``. The accuracy guard is off. Ratio is the median
of the ratios of paired runs, below 1 is faster than float: of process CPU seconds with 1 thread,
of elapsed seconds with more. "predicted / found" is what the target's cost table says of one thread
over its time here.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from _bench import Feed, Rows, foretold, npz_feeds, quantize_static, speed_only, table

from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import Extent
from qhyvit_onnx.runtime import Options, Session, paired_times


def main() -> None:
    """Measure, print a table, keep the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("pairs", nargs="+", metavar="MODEL=DATA")
    parser.add_argument("--target", default="auto")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--samples", type=int, default=16, help="calibration samples")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: Rows = []
    for pair in args.pairs:
        model, data = (Path(part) for part in pair.split("="))
        found = measure(model, npz_feeds(data, args.samples), args)
        print(table(found), flush=True)
        rows += found
    print("\n" + table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def measure(model: Path, feeds: list[Feed], args: argparse.Namespace) -> Rows:
    """Compile one model both ways; time each against float, a row for each number of threads."""
    config, rows = speed_only(args.target), list[dict[str, object]]()
    compiled = compile_model(model, feeds, config)
    full = compile_model(model, feeds, replace(config, placement=Extent.FULL)).model
    with tempfile.TemporaryDirectory() as folder:
        static = quantize_static(model, feeds, Path(folder) / "static.onnx")
        for threads in args.threads:
            ours, everything, theirs = (
                paired(model, item, feeds[0], args.rounds, threads)
                for item in (compiled.model, full, static)
            )
            unit = "ns" if threads == 1 else ""  # tables are of one thread: nothing to hold to
            rows.append({
                "model": model.name,
                "target": compiled.report.target,
                "threads": threads,
                "float ms": round(ours.before_ms, 2),
                "ours / float": ours.ratio,
                "ours, full / float": everything.ratio,
                "quantize_static / float": theirs.ratio,
                **foretold(compiled, unit, 1e6 * ours.before_ms, 1e6 * ours.after_ms),
            })  # fmt: skip
    return rows


class Paired(NamedTuple):
    """Medians of the times of both models, and their ratio as median [quartiles] of the pairs."""

    before_ms: float
    after_ms: float
    ratio: str


def paired(
    source: Path, model: onnx.ModelProto | Path, feed: Feed, rounds: int, threads: int
) -> Paired:
    """Time both models in turn."""
    options = Options(threads=threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    timed = ((Session(item, options), feed) for item in (source, model))
    pair = paired_times(*timed, rounds=rounds, clock=clock)
    before, after = (1e3 * np.array(seconds) for seconds in pair)
    low, middle, high = np.percentile(after / before, [25, 50, 75])
    said = f"{middle:.3f} [{low:.3f}, {high:.3f}]"
    return Paired(float(np.median(before)), float(np.median(after)), said)


if __name__ == "__main__":
    main()
