# SPDX-License-Identifier: Apache-2.0
"""Make rendered text lines with their answers, for judging text recognisers.

The two PP-OCR recognisers are trained hybrids (convolutions, two attention blocks, CTC), so how
many lines a model still reads says what a quantized copy has lost, without any labelled data set.

    python tools/ocr_lines.py OUT_DIR [--width 320] [--read MODEL ...]

OUT_DIR gets ppocr_v4_rec.onnx and ppocr_v6_rec.onnx (out of the two packages that ship them),
ocr_calib.npz (key x, 64 lines), ocr_eval.npz (key x, 120 other lines) and ocr_eval.txt (what the
120 lines say). The reading rates printed last are those of the float models, and of every MODEL
named after --read, in onnxruntime. The same seeds, Pillow and photographs give the same lines.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import numpy as np
import onnxruntime as ort
from _lines import Lines, lines, package_folder

CALIB_LINES, CALIB_SEED = 64, 1
EVAL_LINES, EVAL_SEED = 120, 2
BATCH = 8

# output name: (package, file in its models folder, pip command)
MODELS = {
    "ppocr_v4_rec.onnx": (
        "rapidocr_onnxruntime",
        "ch_PP-OCRv4_rec_infer.onnx",
        "pip install --no-deps rapidocr-onnxruntime==1.4.4",
    ),
    "ppocr_v6_rec.onnx": (
        "rapidocr",
        "PP-OCRv6_rec_small.onnx",
        "pip install --no-deps rapidocr==3.10.0",
    ),
}


def session(model: Path) -> ort.InferenceSession:
    """Return ``model`` ready to run on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def stored_symbols(model: Path) -> list[str]:
    """Return the symbols of the classes of ``model`` as its metadata has them, or an empty list.

    Class 0 is the CTC blank, the last one the space; the list stored leaves both out.
    """
    stored = session(model).get_modelmeta().custom_metadata_map.get("character")
    return ["", *stored.splitlines(), " "] if stored else []


def decode(scores: Lines, symbols: Sequence[str]) -> list[str]:
    """Return the greedy CTC reading: best class a step, repeats merged, blanks dropped.

    Spaces at the ends go too: a recogniser writes them for the margin of a line.

    Shapes: scores (N, steps, classes); symbols one a class.
    """
    if scores.shape[2] != len(symbols):
        raise ValueError(f"{scores.shape[2]} classes, but {len(symbols)} symbols")
    best = scores.argmax(axis=2)  # (N, steps)
    return ["".join(symbols[c] for c, _ in groupby(row)).strip() for row in best.tolist()]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How well a model read: whole lines, and single letters by edit distance."""

    right: int
    lines: int
    letters_wrong: int
    letters: int

    def __str__(self) -> str:
        """Return both rates as one phrase."""
        share = 100 * self.letters_wrong / self.letters
        return f"{self.right}/{self.lines} lines right, {share:.2f} % of letters wrong"


def edits(a: str, b: str) -> int:
    """Return the least number of letters to insert, delete or change that makes ``b`` of ``a``."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def read(model: Path, x: Lines, symbols: Sequence[str]) -> list[str]:
    """Return what ``model`` reads in each line of ``x``."""
    run = session(model)
    feed = run.get_inputs()[0]
    step = feed.shape[0] if isinstance(feed.shape[0], int) else BATCH
    batches = (x[i : i + step] for i in range(0, len(x), step))
    return [s for batch in batches for s in decode(run.run(None, {feed.name: batch})[0], symbols)]


def judge(model: Path, x: Lines, texts: Sequence[str], symbols: Sequence[str]) -> Reading:
    """Return how well ``model`` reads lines ``x`` that say ``texts``."""
    found = read(model, x, symbols)
    return Reading(
        right=sum(a == b for a, b in zip(found, texts, strict=True)),
        lines=len(texts),
        letters_wrong=sum(edits(a, b) for a, b in zip(found, texts, strict=True)),
        letters=sum(map(len, texts)),
    )


def fetch_models(out: Path) -> list[Path]:
    """Copy the recognisers into ``out``; name every missing package at once."""
    missing = [(p, pip) for p, _, pip in MODELS.values() if find_spec(p) is None]
    if missing:
        told = "\n".join(f"  {package}: {pip}" for package, pip in missing)
        raise SystemExit(f"packages that ship the recognisers are not installed:\n{told}")
    for name, (package, file, pip) in MODELS.items():
        shutil.copyfile(package_folder(package, pip) / "models" / file, out / name)
    return [out / name for name in MODELS]


def symbols_for(model: Path, known: Sequence[Sequence[str]]) -> Sequence[str]:
    """Return the symbols of ``model``: its own, or those of a recogniser with as many classes.

    A quantizer may drop the metadata of a model, but not one of its classes.
    """
    if own := stored_symbols(model):
        return own
    classes = session(model).get_outputs()[0].shape[2]
    found = next((s for s in known if len(s) == classes), None)
    if found is None:
        raise SystemExit(f"{model}: no symbols in it, and no recogniser has {classes} classes")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Write the models and the lines, print the reading rates."""
    parser = argparse.ArgumentParser(description="rendered text lines for the PP-OCR recognisers")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--width", type=int, default=320, help="pixels (default %(default)s)")
    parser.add_argument("--read", type=Path, nargs="+", default=[], metavar="MODEL")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    models = fetch_models(args.out)
    np.savez(args.out / "ocr_calib.npz", x=lines(CALIB_LINES, CALIB_SEED, args.width)[0])
    x, texts = lines(EVAL_LINES, EVAL_SEED, args.width)
    np.savez(args.out / "ocr_eval.npz", x=x)
    (args.out / "ocr_eval.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    known = [stored_symbols(model) for model in models]
    for model in (*models, *args.read):
        print(f"{model.name}: {judge(model, x, texts, symbols_for(model, known))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
