# SPDX-License-Identifier: Apache-2.0
"""Compile every exported model of a folder; set it beside onnxruntime's own static quantization.

usage: python tools/bench_zoo.py ZOO_DIR [--target x64-avx2] [--models mobilevit_xxs ...] [--json F]

ZOO_DIR is what ``tools/export_zoo.py`` writes. Per file: is the audit clean, how many units run
int8, SQNR of ours and of ``quantize_static`` (min-max, uint8 activations, int8 per-channel
weights) on the same evaluation crops, CPU time of ours over float (1 thread, both in turn).
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from _bench import Rows, best_arithmetic, closeness, npz_feeds, quantize_static, table

from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.runtime import Arithmetic


@dataclass(frozen=True, slots=True)
class Row:
    """One file."""

    file: str
    int8_units: str
    seconds: float
    sqnr_db: float
    static_sqnr_db: float
    agreement: float
    static_agreement: float
    cpu_ratio: float
    megabytes: str


def main() -> None:
    """Measure, print a table, keep the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--target", default="auto")
    parser.add_argument("--models", nargs="*", default=[], help="only files whose name starts so")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: Rows = []
    for path in sorted(args.zoo.glob("*.onnx")):
        if not args.models or path.name.startswith(tuple(args.models)):
            rows.append(asdict(measure(path, args.target)))
            print(table(rows[-1:]), flush=True)
    print("\n" + table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def measure(path: Path, target: str) -> Row:
    """Compile one file both ways and compare with float on the evaluation crops."""
    size = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim[-1]
    calib, evaluation = (path.parent / f"{size.dim_value}_{part}.npz" for part in ("calib", "eval"))
    compiled = compile_model(path, calib, CompileConfig(target=target))
    report = compiled.report
    feeds = npz_feeds(evaluation)
    arithmetic = Arithmetic(report.arithmetic)
    ours = closeness(path, compiled.model, feeds, arithmetic)
    with tempfile.TemporaryDirectory() as folder:
        static = quantize_static(path, npz_feeds(calib), Path(folder) / "static.onnx")
        theirs = closeness(path, static, feeds, best_arithmetic(static))
    return Row(
        file=path.name,
        int8_units=f"{report.int8_units}/{len(report.units)}",
        seconds=round(sum(item.seconds for item in report.passes), 1),
        sqnr_db=round(ours.sqnr_db, 2),
        static_sqnr_db=round(theirs.sqnr_db, 2),
        agreement=round(ours.agreement, 4),
        static_agreement=round(theirs.agreement, 4),
        cpu_ratio=round(report.latency.ratio, 3) if report.latency else float(np.nan),
        megabytes=f"{report.bytes_before / 1e6:.1f} -> {report.bytes_after / 1e6:.1f}",
    )


if __name__ == "__main__":
    main()
