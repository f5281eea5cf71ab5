# SPDX-License-Identifier: Apache-2.0
"""Instructions that compiled models execute on emulated ARM cores, over those of the float model.

usage: python tools/bench_arm.py MODEL.onnx=DATA.npz ... [--cpus a53 a76 i8mm] [--json F]
    [--emulator out/arm]

Cores: a53 has no dot product (nor has A72), a76 has it (Raspberry Pi 5), i8mm also multiplies
matrices. Ours is compiled for each by its own target. Beside ours: the same with everything on
integers that has an integer kernel (``--placement full``), and onnxruntime's own
``quantize_static``. The accuracy guard is off.

What runs is the stock aarch64 wheel of onnxruntime, one thread, under qemu-user;
``tools/arm/setup.sh`` puts it into the folder of ``--emulator`` once, and says which Debian
packages it needs. Counts repeat to within half a percent or so. They are instructions, not
seconds: caches, memory and what a core does at once are not in them.

"predicted / found" is what the target's cost table says over what was counted. "output" is what the
compiled model computes there against here: equal, or the largest difference over the largest value
(QLinearAdd rounds in another way on ARM).
"""

import argparse
import json
import tempfile
from dataclasses import replace
from math import exp, log
from pathlib import Path

import numpy as np
import onnx
from _bench import Feed, Rows, foretold, npz_feeds, quantize_static, speed_only, table
from _emulated import TARGETS, count, set_up

from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import Extent
from qhyvit_onnx.runtime import Arithmetic, Options, Session


def main() -> None:
    """Measure, print a table with geometric means, keep the figures as JSON."""
    args = parser().parse_args()
    set_up(args.emulator)
    rows: Rows = []
    for pair in args.pairs:
        model, data = (Path(part) for part in pair.split("="))
        rows.extend(measure(model, npz_feeds(data, args.samples), args))
        print(table(rows[-len(args.cpus) :]), flush=True)
    print("\n" + table(rows) + "\n\n" + table(means(rows)))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("pairs", nargs="+", metavar="MODEL=DATA")
    parser.add_argument("--cpus", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--samples", type=int, default=16, help="calibration samples")
    parser.add_argument("--emulator", type=Path, default=Path("out/arm"))
    parser.add_argument("--json", type=Path)
    return parser


def measure(model: Path, feeds: list[Feed], args: argparse.Namespace) -> Rows:
    """Compile one model both ways, ours for every core; count all three on every core."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(onnx.load(model), folder / "float.onnx")
        with tempfile.TemporaryDirectory() as other:
            static = quantize_static(model, feeds, Path(other) / "static.onnx")
            static.rename(folder / "static.onnx")
        np.savez(folder / "feeds.npz", **feeds[0])
        rows: Rows = []
        for cpu in args.cpus:
            config = speed_only(TARGETS[cpu])
            found = compile_model(model, feeds, config)
            compiled = found.model
            full = compile_model(model, feeds, replace(config, placement=Extent.FULL)).model
            onnx.save(compiled, folder / "ours.onnx")
            onnx.save(full, folder / "full.onnx")
            here = Session(compiled, Options(arithmetic=Arithmetic.EXACT)).run(feeds[0])
            counts = count(args.emulator, cpu, folder)
            with np.load(folder / "ours.npz") as there:
                apart = difference(here, dict(there))
            rows.append({
                "model": model.name,
                "core": cpu,
                "float, millions": round(counts["float"] / 1e6, 1),
                "ours / float": round(counts["ours"] / counts["float"], 3),
                "ours, full / float": round(counts["full"] / counts["float"], 3),
                "quantize_static / float": round(counts["static"] / counts["float"], 3),
                **foretold(found, "instructions", counts["float"], counts["ours"]),
                "output": apart,
            })  # fmt: skip
    return rows


def difference(here: Feed, there: Feed) -> str:
    """Return ``equal``, or the largest difference over the largest value."""
    gap = max(float(np.abs(here[name] - there[name]).max()) for name in here)
    top = max(float(np.abs(array).max()) for array in here.values())
    return "equal" if gap == 0.0 else f"{gap / top:.1e}"


def means(rows: Rows) -> Rows:
    """Return geometric means over the models, by core."""
    ratios = ("ours / float", "ours, full / float", "quantize_static / float")
    return [
        {"core": cpu}
        | {
            name: round(exp(np.mean([log(row[name]) for row in rows if row["core"] == cpu])), 3)
            for name in ratios
        }
        for cpu in dict.fromkeys(row["core"] for row in rows)
    ]


if __name__ == "__main__":
    main()
