# SPDX-License-Identifier: Apache-2.0
"""Seconds and peak memory of one compilation, each in a process of its own.

usage: python tools/bench_compile.py MODEL.onnx SIZE [--samples 64 512] [OPTIONS OF COMPILE ...]

Calibrates on JPEG images of SIZE x SIZE made on the spot (crops of the bundled photographs with
noise), so that decoding is part of the measurement and any number of images is there. What else is
given goes to ``qhv-onnx compile``, as ``--effort max --precision w4a8``.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _bench import Rows, table
from PIL import Image

NATURAL = Path(__file__).parents[1] / "qhyvit_onnx" / "assets" / "natural"


def main() -> None:
    """Measure each number of samples, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("size", type=int)
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 512])
    args, options = parser.parse_known_args()
    rows: Rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images", max(args.samples), args.size)
        for samples in args.samples:
            rows.append(measure(args.model, folder, samples, options))
            print(table(rows[-1:]), flush=True)
    print("\n" + table(rows))


def make_images(folder: Path, count: int, size: int) -> None:
    """Write ``count`` noisy crops of the bundled photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pictures = [Image.open(path).convert("RGB") for path in sorted(NATURAL.glob("*.jpg"))]
    for index in range(count):
        picture = pictures[index % len(pictures)].resize((size, size))
        pixels = np.asarray(picture, np.float32) + rng.normal(0, 8, (size, size, 3))
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(folder / f"{index:05d}.jpg", quality=92)


def measure(model: Path, folder: Path, samples: int, options: Sequence[str]) -> dict[str, object]:
    """Run the command line in a child process; return its wall time and peak memory."""
    command = [sys.executable, "-m", "qhyvit_onnx", "compile", str(model), "-q"]
    command += ["--calib", str(folder / "images"), "--calib-samples", str(samples)]
    command += ["-o", str(folder / "out.onnx"), "--overwrite", *options]
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"compile failed with exit status {os.waitstatus_to_exitcode(status)}")
    return {
        "model": model.name,
        "images": samples,
        "options": " ".join(options),
        "wall s": round(time.perf_counter() - start, 1),
        "peak MB": round(_megabytes(usage)),
    }


def _megabytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
