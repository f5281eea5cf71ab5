"""Export hybrid vision models to ONNX the ways their users do, with pictures to calibrate on.

    python tools/export_zoo.py OUT_DIR [--models NAME ...] [--image-dir DIR] [--force]

Each timm model is written four ways, {model}.{ts17|dy18}.{static|dynamic}.onnx: by the TorchScript
exporter at opset 17 and by the dynamo exporter at opset 18, with a batch of 1 or a free one. Every
input is called x, every output logits. For each input size there are {size}_calib.npz and
{size}_eval.npz (key x, 64 crops of photographs each). What is there already is kept.

The weights are random, so these models serve structure, memory and speed; what quantization does to
their outputs says nothing about a trained model. Needs torch, timm, torchvision, onnxscript,
onnxruntime, pillow, and scikit-image for its photographs.
"""

import argparse
import importlib
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from PIL import Image
from torch import nn

Batch = npt.NDArray[np.float32]

MODELS = ("mobilevit_xxs", "mobilevitv2_050", "efficientformer_l1", "efficientformerv2_s0")
SEED = 0
CROPS = 64
CALIB_SEED, EVAL_SEED = 1, 2
SETTLE_BATCH = 16
TOLERANCE = 1e-3  # of the largest logit

# scikit-image's wheel carries these: CC0 or public domain by its own notes.
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "rocket.jpg",
)
PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
SCHEMAS: list[torch.library.Library] = []  # a schema goes when its library does
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB


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


def load_timm() -> ModuleType:
    """Import timm, also where torchvision's compiled operators do not fit torch.

    torchvision cannot be imported without the schemas of two operators; timm never calls either.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        SCHEMAS.append(library)
    return importlib.import_module("timm")


def photographs(folder: Path | None) -> list[Image.Image]:
    """Return the pictures under ``folder``, or the photographs that scikit-image ships."""
    if folder is not None:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES)
        if not paths:
            raise SystemExit(f"no pictures under {folder}")
    else:
        spec = find_spec("skimage")
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("no photographs: pip install scikit-image, or give --image-dir")
        paths = [Path(spec.submodule_search_locations[0], "data", p) for p in PHOTOGRAPHS]
    return [Image.open(path).convert("RGB") for path in paths]


def crops(photos: Sequence[Image.Image], size: int, seed: int) -> Batch:
    """Return square pieces of ``photos``, some mirrored.

    Shapes: (CROPS, 3, size, size), RGB.
    Units: (x / 255 - MEAN) / STD.
    """
    rng = np.random.default_rng(seed)
    out = np.empty((CROPS, 3, size, size), np.float32)
    for i in range(CROPS):
        photo = photos[i % len(photos)]
        side = int(min(photo.size) * rng.uniform(0.35, 1.0))
        x = int(rng.integers(photo.width - side + 1))
        y = int(rng.integers(photo.height - side + 1))
        piece = np.asarray(photo.resize((size, size), box=(x, y, x + side, y + side)), np.float32)
        piece = piece[:, :: rng.choice([-1, 1])]  # (H, W, 3)
        out[i] = ((piece / 255 - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)
    return out


def randomise(model: nn.Module) -> None:
    """Give ``model`` weights of a trained model's size.

    As initialised, the last norm of many branches has gain 0, so whole convolutions vanish when
    norms are folded and the logits are of the order of 1e-16.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.5 / module.in_features**0.5)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma") or "layer_scale" in name:
            nn.init.uniform_(parameter, 0.1, 0.5)
        elif not parameter.any():  # biases, of attention maps too
            nn.init.normal_(parameter, 0, 0.1)


def settle(model: nn.Module, pictures: Batch) -> None:
    """Make the running statistics of every batch norm those of ``pictures``."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    with torch.no_grad():
        for batch in torch.from_numpy(pictures).split(SETTLE_BATCH):
            model(batch)
    model.eval()


def build(timm: ModuleType, name: str, pictures: Batch) -> nn.Module:
    """Return the timm model ``name`` with seeded weights, ready to export."""
    timm.layers.set_fused_attn(False)  # plain MatMul and Softmax, as in most files in use
    torch.manual_seed(SEED)
    model: nn.Module = timm.create_model(name, pretrained=False).eval()
    randomise(model)
    settle(model, pictures)
    return model


def input_size(timm: ModuleType, name: str) -> int:
    """Return the side in pixels of the pictures that the timm model ``name`` was made for."""
    if not timm.is_model(name):
        raise SystemExit(f"timm {timm.__version__} has no model {name}")
    return int(timm.get_pretrained_cfg(name).input_size[-1])


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


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pictures and the models; return 1 if one differs from torch."""
    parser = argparse.ArgumentParser(description="export timm hybrids to ONNX, four ways each")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--image-dir", type=Path, help="pictures (default: scikit-image's)")
    parser.add_argument("--force", action="store_true", help="redo what is there already")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore")  # the exporters' own, some hundred a model
    logging.disable(logging.WARNING)
    args.out.mkdir(parents=True, exist_ok=True)
    timm, photos, wrong = load_timm(), photographs(args.image_dir), 0
    sizes = {name: input_size(timm, name) for name in args.models}
    for size in sorted(set(sizes.values())):
        for part, seed in (("calib", CALIB_SEED), ("eval", EVAL_SEED)):
            if wanted(path := args.out / f"{size}_{part}.npz", force=args.force):
                np.savez(path, x=crops(photos, size, seed))
    for name, size in sizes.items():
        paths = {way: args.out / f"{name}.{way.name}.onnx" for way in WAYS}
        missing = [way for way, path in paths.items() if wanted(path, force=args.force)]
        if not missing:
            continue
        model = build(timm, name, crops(photos, size, CALIB_SEED))
        pictures = crops(photos, size, EVAL_SEED)
        wrong += sum(not export_checked(model, way, pictures, paths[way]) for way in missing)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
