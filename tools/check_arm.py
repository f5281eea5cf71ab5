# SPDX-License-Identifier: Apache-2.0
"""Does ARM compute what was proven here? Runs compiled models on emulated ARM cores.

usage: python tools/check_arm.py [--zoo DIR] [--cores a53 a76 i8mm] [--emulator out/arm]

The bundled model, and those in a folder of ``tools/export_zoo.py``, are compiled for each core.
Every integer node is held to its reference kernel, bit for bit, on what it really read there
(QLinearAdd by its ARM formula). Then instructions are counted: of float, of everything on integer
kernels, and of the placement that was found. Stops with status 1 when a node differs.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from _bench import Feed, Rows, npz_feeds, speed_only, table
from _cases import demo_case
from _emulated import TARGETS, count, set_up

from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import Extent
from qhyvit_onnx.kernels.integer.machine import Machine
from qhyvit_onnx.replay import Shown
from qhyvit_onnx.runtime import Options, View

SAMPLES = 16


def main() -> None:
    """Check every model on every core, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--cores", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--emulator", type=Path, default=Path("out/arm"))
    args = parser.parse_args()
    if args.zoo is None:
        print("(no --zoo folder: the bundled model only; tools/export_zoo.py DIR makes more)")
    set_up(args.emulator)
    rows: Rows = []
    for model, feeds in models(args.zoo):
        for core in args.cores:
            rows.append(check(model, feeds, core, args.emulator))
            print(table(rows[-1:]), flush=True)
    print("\n" + table(rows))
    if wrong := [f"{row['model']} on {row['core']}" for row in rows if row["largest difference"]]:
        raise SystemExit(f"not bit for bit: {', '.join(wrong)}")


def models(zoo: Path | None) -> Iterator[tuple[Path, list[Feed]]]:
    """Yield models with their calibration samples."""
    demo = demo_case()
    yield demo.model, list(demo.calib[:SAMPLES])
    for model in sorted(zoo.glob("*.ts17.static.onnx")) if zoo else ():
        size = onnx.load(model).graph.input[0].type.tensor_type.shape.dim[3].dim_value
        yield model, npz_feeds(model.with_name(f"{size}_calib.npz"), SAMPLES)


def check(model: Path, feeds: list[Feed], core: str, emulator: Path) -> dict[str, object]:
    """Compile, run there, compare and count."""
    config = speed_only(TARGETS[core])
    placed = compile_model(model, feeds, config).model
    full = compile_model(model, feeds, replace(config, placement=Extent.FULL)).model
    shown = Shown(placed, Options(view=View.ARM))
    files = {"float": onnx.load(model), "placed": placed, "full": full, "shown.plain": shown.model}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, content in files.items():
            onnx.save(content, folder / f"{label}.onnx")
        np.savez(folder / "feeds.npz", **feeds[0])
        counts = count(emulator, core, folder)
        with np.load(folder / "shown.plain.npz") as arrays:
            found = shown.compared([{**feeds[0], **arrays}], Machine.ARM)
    return {
        "model": model.name.removesuffix(".onnx"),
        "core": core,
        "integer nodes": len(found.layers),
        "without reference": sum(found.unreplayed().values()),
        "largest difference": max(layer.difference for layer in found.layers),
        "float, millions": round(counts["float"] / 1e6, 1),
        "full / float": round(counts["full"] / counts["float"], 3),
        "placed / float": round(counts["placed"] / counts["float"], 3),
    }


if __name__ == "__main__":
    main()
