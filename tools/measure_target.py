# SPDX-License-Identifier: Apache-2.0
"""Measure the cost table of a target: what units cost in float and in int8, by their size.

usage: python tools/measure_target.py NAME [--emulator out/arm] [-o FILE.toml] [--row float.norm]

x64-vnni is timed on this machine, which must have that instruction set and be quiet. The ARM
targets are counted: instructions of the stock aarch64 onnxruntime on an emulated core; so is
x64-avx2, with the onnxruntime that is installed here. With ``--row`` only models that hold that row
are measured, and all other rows stay as they are shipped.
"""

import argparse
import json
import platform
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import onnx
from _emulated import TARGETS as EMULATED
from _emulated import count, count_haswell, set_up

from qhyvit_onnx.costs.clock import measure
from qhyvit_onnx.costs.fit import fit
from qhyvit_onnx.costs.specimens import LONG, SHORT, Specimen, specimens
from qhyvit_onnx.costs.table import KEYS, dump_table, layout_key
from qhyvit_onnx.runtime import version
from qhyvit_onnx.targets import TARGETS

CORES = {target: core for core, target in EMULATED.items()}
SHIPPED = {target.name: target for target in TARGETS}


def main() -> None:
    """Measure every specimen, fit, write the table, print how far off the fit is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("target", choices=SHIPPED)
    parser.add_argument("--emulator", type=Path, default=Path("out/arm"))
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--raw", type=Path, help="also keep what each model cost, as JSON")
    parser.add_argument("--row", choices=KEYS, metavar="ROW", help="measure this one alone")
    args = parser.parse_args()
    shipped = SHIPPED[args.target]
    chosen = [item for item in specimens() if not args.row or args.row in item.terms()]
    known = {key: shipped.rows[key] for key in KEYS if args.row and key != args.row}
    free = []
    if args.target == "x64-vnni":
        unit, measured, how = "ns", measure(chosen), f"timed on {cpu_name()}"
    elif args.target == "x64-avx2":
        unit, measured = "instructions", counted(chosen, count_haswell)
        how = f"emulated Haswell, {version_of('qemu-x86_64')}"
    else:
        core = CORES[args.target]
        set_up(args.emulator)
        free = [layout_key("blocked")]  # float convolutions have no such layout there
        unit = "instructions"
        measured = counted(chosen, lambda folder: count(args.emulator, core, folder))
        how = f"emulated {core}, {version_of('qemu-aarch64')}"
    if args.raw:
        named = dict(zip((item.name for item in chosen), measured, strict=True))
        args.raw.write_text(json.dumps(named, indent=1))
    date = datetime.now(UTC).date()
    provenance = f"onnxruntime {version()}, {how}, tools/measure_target.py, {date}"
    if args.row:
        provenance = f"{shipped.provenance}; {args.row}: {provenance}"
    rows = fit(chosen, measured, free, known)
    table = replace(shipped, unit=unit, provenance=provenance, rows=rows)
    output = args.output or Path(f"qhyvit_onnx/assets/targets/{args.target}.toml")
    output.write_text(dump_table(table), encoding="utf-8")
    print(output)


def counted(chosen: list[Specimen], counter: Callable[[Path], dict[str, int]]) -> list[float]:
    """Return for each specimen how many instructions LONG takes more than SHORT."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, specimen in enumerate(chosen):
            for times in (SHORT, LONG):
                onnx.save(specimen.model(times), folder / f"{index}x{times}.onnx")
        found = counter(folder)
    return [
        float(found[f"{index}x{LONG}"] - found[f"{index}x{SHORT}"]) for index in range(len(chosen))
    ]


def version_of(emulator: str) -> str:
    """Return the version of qemu, as ``qemu-aarch64 7.2.13``."""
    done = subprocess.run([emulator, "--version"], capture_output=True, text=True, check=True)
    return f"{emulator} {done.stdout.split()[2]}"


def cpu_name() -> str:
    """Return what the processor calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
