# SPDX-License-Identifier: Apache-2.0
"""Is the placement that is found the fastest one? Count others, on an emulated ARM core.

usage: python tools/bench_placement.py MODEL.onnx=DATA.npz ... [--core a76] [--others 20]

Instructions of one run over those of float: of the placement found, of all that can be int8, of
layers alone (convolutions, Gemm, MatMul), and of random perturbations of the one found, in each of
which every unit changes sides with a probability of 5 %. The accuracy guard is off. One run of each
is enough: counts repeat to within half a percent or so.
"""

import argparse
import json
import tempfile
from collections.abc import Collection
from dataclasses import replace
from glob import escape
from pathlib import Path

import numpy as np
import onnx
from _bench import Feed, Rows, npz_feeds, speed_only, table
from _emulated import TARGETS, count, set_up

from qhyvit_onnx.compiler import Compiled, compile_model
from qhyvit_onnx.kinds import LAYERS

FLIPPED = 0.05


def main() -> None:
    """Count every placement of every model, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("pairs", nargs="+", metavar="MODEL=DATA")
    parser.add_argument("--core", choices=TARGETS, default="a76")
    parser.add_argument("--others", type=int, default=20)
    parser.add_argument("--emulator", type=Path, default=Path("out/arm"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_up(args.emulator)
    rows: Rows = []
    for pair in args.pairs:
        model, data = (Path(part) for part in pair.split("="))
        rows.append(measure(model, npz_feeds(data, 4), args))
        print(table(rows[-1:]), flush=True)
    print("\n" + table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def measure(model: Path, feeds: list[Feed], args: argparse.Namespace) -> dict[str, object]:
    """Count every placement of one model."""
    target = TARGETS[args.core]
    found = placed(model, feeds, target, ())
    units = {unit.name: unit for unit in found.report.units}
    chosen = {name for name, unit in units.items() if unit.int8}
    able = {n for n, u in units.items() if u.kind != "softmax"}
    layers = {name for name in able if units[name].kind in set(map(str, LAYERS))}
    rng = np.random.default_rng(0)
    others = [
        {name for name in able if (name in chosen) is not (rng.uniform() < FLIPPED)}
        for _ in range(args.others)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "feeds.npz", **feeds[0])
        onnx.save(onnx.load(model), folder / "float.onnx")
        onnx.save(found.model, folder / "found.onnx")
        for label, names in {
            "full": able, "layers": layers,
            **{f"other{index}": names for index, names in enumerate(others)},
        }.items():  # fmt: skip
            compiled = placed(model, feeds, target, names, able).model
            onnx.save(compiled, folder / f"{label}.onnx")
        counts = count(args.emulator, args.core, folder)
    ratios = {label: counts[label] / counts["float"] for label in counts}
    random = [ratio for label, ratio in ratios.items() if label.startswith("other")]
    return {
        "model": model.name,
        "core": args.core,
        "found": round(ratios["found"], 3),
        "full int8": round(ratios["full"], 3),
        "layers only": round(ratios["layers"], 3),
        "best of random": round(min(random), 3),
        "mean of random": round(float(np.mean(random)), 3),
        "found over best": round(ratios["found"] / min(ratios.values()), 3),
    }


def placed(
    model: Path, feeds: list[Feed], target: str, names: Collection[str], able: Collection[str] = ()
) -> Compiled:
    """Compile with just ``names`` of the units ``able`` in int8; of none, with what is found."""
    config = replace(
        speed_only(target),
        force_int8=tuple(map(escape, sorted(names))),
        exclude=tuple(map(escape, sorted(set(able) - set(names)))),
    )
    return compile_model(model, feeds, config)


if __name__ == "__main__":
    main()
