# SPDX-License-Identifier: Apache-2.0
"""Export hybrid vision models to ONNX the ways their users do, with pictures to calibrate on.

    python tools/export_zoo.py OUT_DIR [--models NAME ...] [--image-dir DIR] [--force]

The models are timm's, and Mobile-Former by tools/mobile_former.py. Each is written four ways,
{model}.{ts17|dy18}.{static|dynamic}.onnx: by the TorchScript exporter at opset 17 and by the dynamo
exporter at opset 18, with a batch of 1 or a free one. Every input is called x, every output logits.
For each input size there are {size}_calib.npz and {size}_eval.npz (key x, 64 crops of photographs
each). What is there already is kept; a file that differs from torch is not.

The weights are random, so these models serve structure, memory and speed; what quantization does to
their outputs says nothing about a trained model. Needs torch, timm, torchvision, onnxscript,
onnxruntime, pillow, and scikit-image for its photographs; Mobile-Former alone needs no timm.
"""

import argparse
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn
from zoo_models import MODELS, build, input_size
from zoo_pictures import Batch, crops, photographs

CALIB_SEED, EVAL_SEED = 1, 2
TOLERANCE = 1e-3  # of the largest logit


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to export: which exporter, which opset, which batch."""

    name: str
    dynamo: bool
    opset: int
    free_batch: bool


WAYS = (
    Way(name="ts17.static", dynamo=False, opset=17, free_batch=False),
    Way(name="ts17.dynamic", dynamo=False, opset=17, free_batch=True),
    Way(name="dy18.static", dynamo=True, opset=18, free_batch=False),
    Way(name="dy18.dynamic", dynamo=True, opset=18, free_batch=True),
)


def export(model: nn.Module, way: Way, size: int, path: Path) -> None:
    """Write ``model`` to ``path`` in one file."""
    sample = torch.zeros(2 if way.free_batch else 1, 3, size, size)
    free: dict[str, Any] = {}
    if way.free_batch and way.dynamo:
        free["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    elif way.free_batch:
        free["dynamic_axes"] = {"x": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(
        model,
        (sample,),
        path,
        input_names=["x"],
        output_names=["logits"],
        opset_version=way.opset,
        dynamo=way.dynamo,
        external_data=False,
        verbose=False,
        **free,
    )


def difference(model: nn.Module, path: Path, pictures: Batch) -> tuple[float, float]:
    """Return the largest gap of onnxruntime to torch, and that gap over the largest logit.

    A free batch is tried with a size that the export did not see.
    """
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    step = 1 if session.get_inputs()[0].shape[0] == 1 else len(pictures)
    got = [session.run(["logits"], {"x": b})[0] for b in np.split(pictures, len(pictures) // step)]
    with torch.no_grad():
        want = model(torch.from_numpy(pictures)).numpy()
    gap = float(np.abs(np.concatenate(got) - want).max())
    return gap, gap / float(np.abs(want).max())


def export_checked(model: nn.Module, way: Way, pictures: Batch, path: Path) -> bool:
    """Write ``path`` and say what is in it; a file that differs from torch is not kept."""
    draft = path.with_suffix(".part")
    export(model, way, pictures.shape[-1], draft)
    gap, relative = difference(model, draft, pictures[:3])
    written = onnx.load(draft)
    nodes = Counter(node.op_type for node in written.graph.node)
    common = ", ".join(f"{op} {count}" for op, count in nodes.most_common(6))
    megabytes = draft.stat().st_size / 1e6
    good = relative <= TOLERANCE
    print(
        f"{path.name}: {'ok' if good else 'WRONG, not kept'}, max abs diff {gap:.1e} "
        f"({relative:.1e} of the largest logit), {megabytes:.1f} MB, "
        f"{nodes.total()} nodes: {common}",
        flush=True,
    )
    if good:
        draft.replace(path)
    else:
        draft.unlink()
    return good


def wanted(path: Path, *, force: bool) -> bool:
    """Return whether ``path`` is to be written, and say so if it is not."""
    if path.exists() and not force:
        print(f"{path.name}: there already")
        return False
    return True


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument(
        "--models", nargs="+", default=MODELS, metavar="NAME", help=f"default: {', '.join(MODELS)}"
    )
    parser.add_argument("--image-dir", type=Path, help="pictures (default: scikit-image's)")
    parser.add_argument("--force", action="store_true", help="redo what is there already")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pictures and the models; return 1 if one differs from torch."""
    args = parser().parse_args(argv)
    warnings.filterwarnings("ignore")  # the exporters' own, some hundred a model
    logging.disable(logging.WARNING)
    args.out.mkdir(parents=True, exist_ok=True)
    photos, wrong = photographs(args.image_dir), 0
    sizes = {name: input_size(name) for name in args.models}
    for size in sorted(set(sizes.values())):
        for part, seed in (("calib", CALIB_SEED), ("eval", EVAL_SEED)):
            if wanted(path := args.out / f"{size}_{part}.npz", force=args.force):
                np.savez(path, x=crops(photos, size, seed))
    for name, size in sizes.items():
        paths = {way: args.out / f"{name}.{way.name}.onnx" for way in WAYS}
        missing = [way for way, path in paths.items() if wanted(path, force=args.force)]
        if not missing:
            continue
        model = build(name, crops(photos, size, CALIB_SEED))
        pictures = crops(photos, size, EVAL_SEED)
        wrong += sum(not export_checked(model, way, pictures, paths[way]) for way in missing)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
