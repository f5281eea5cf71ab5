"""Train the demonstration model and write tools/demo/: model, preprocessing, images, README.

A small MobileViT reads the digit a hand shows. It is trained from scratch on the Sign Language
Digits photographs (Apache-2.0), so the repository can carry the model, its calibration images and
its test images, and anyone can retrain it on two cores in a quarter of an hour.

    python tools/train_demo.py SIGN_LANGUAGE_DIGITS.tar [--out tools/demo] [--epochs 60]

The archive holds Dataset/<digit>/*.JPG and LICENSE, as in the data set's repository. The same
seed, torch build and thread count give the same files. The float accuracies printed last come from
onnxruntime running the exported file.
"""

import argparse
import io
import os
import shutil
import tarfile
import tomllib
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses
from demo_net import CLASSES, SIDE, build
from PIL import Image
from torch import Tensor, nn

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

SEED = 0
CALIB_IMAGES, EVAL_IMAGES, JPEG_QUALITY = 64, 256, 92
BATCH, PEAK_RATE, WARMUP, EMA_DECAY = 64, 3e-3, 0.08, 0.99
FLOOR = 0.97  # below this the training went wrong, and the files are not worth keeping

PREPROCESS = f"""\
resize = {SIDE}  # short side, pixels
crop = {SIDE}  # centre square, pixels
interpolation = "bicubic"
color = "rgb"
scale = {1 / 255}
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
layout = "nchw"
"""

README = """\
# Demonstration model: digits shown by hand

`model.onnx` is a small MobileViT (3x3 convolutions, inverted residuals, two MobileViT blocks with
softmax attention; {params:,} parameters, float32, opset 17, dynamic batch), as torch's TorchScript
exporter writes it: batch normalisations and shape arithmetic are still there.

| | |
|---|---|
| `preprocess.toml` | what to do to a picture before the model sees it |
| `calib/` | {calib} photographs out of the training part, for calibration |
| `eval/<digit>/` | {eval} photographs the training never saw; the folder is the label |

Float top-1 in onnxruntime: {whole:.2f} % of the {held} held-out photographs,
{jpeg:.2f} % of the {eval} in `eval/`.

## Retraining

    python tools/train_demo.py SIGN_LANGUAGE_DIGITS.tar

rewrites this folder. The archive holds the data set's `Dataset/<digit>/*.JPG` and `LICENSE`.

## Source of the photographs

Turkey Ankara Ayrancı Anadolu High School's Sign Language Digits Dataset, by the school's students;
project executives Zeynep Dikle and Arda Mavi. Copyright 2017 Arda Mavi, Apache License 2.0, of
which `LICENSE` is a copy. Changed here: resized from 100x100 to {side}x{side} pixels, encoded again
as JPEG, renamed. To cite: A. Mavi (2020), "A New Dataset and Proposed Convolutional Neural Network
Architecture for Classification of American Sign Language Digits", arXiv:2011.08927.
"""  # noqa: RUF001 - the school's name has a dotless i


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the photographs: names, uint8 pixels [N, 64, 64, 3] and digits [N]."""

    names: list[str]
    x: Pixels
    y: Labels

    def take(self, rows: npt.NDArray[np.int64]) -> "Part":
        """Return the photographs at ``rows``."""
        return Part([self.names[row] for row in rows], self.x[rows], self.y[rows])


def read(archive: Path) -> tuple[Part, bytes]:
    """Return every photograph, sorted by name, and the licence text beside them."""
    names, pictures, digits = [], [], []
    with tarfile.open(archive) as tar:
        licence = tar.extractfile("LICENSE")
        assert licence is not None
        text = licence.read()
        for name in sorted(name for name in tar.getnames() if name.upper().endswith(".JPG")):
            data = tar.extractfile(name)
            assert data is not None
            picture = Image.open(io.BytesIO(data.read())).convert("RGB")
            pictures.append(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
            digits.append(int(Path(name).parent.name))
            names.append(Path(name).stem.lower())
    return Part(names, np.stack(pictures), np.array(digits)), text


def split(part: Part, count: int, rng: np.random.Generator) -> tuple[Part, Part]:
    """Return ``count`` photographs, every digit as often as can be, and the others."""
    chosen: list[int] = []
    for digit in range(CLASSES):
        share = count // CLASSES + (digit < count % CLASSES)
        chosen += rng.permutation(np.flatnonzero(part.y == digit))[:share].tolist()
    picked = np.array(sorted(chosen))
    return part.take(picked), part.take(np.setdiff1d(np.arange(len(part.y)), picked))


def normalise(x: Tensor) -> Tensor:
    """Turn values 0 to 255, [N, H, W, 3], into what the model reads, as preprocess.toml says."""
    rule = tomllib.loads(PREPROCESS)
    y = (x * rule["scale"] - torch.tensor(rule["mean"])) / torch.tensor(rule["std"])
    images: Tensor = y.permute(0, 3, 1, 2).contiguous()
    return images


def augment(x: Tensor) -> Tensor:
    """Return [N, 3, H, W] turned, scaled, shifted, mirrored, relit and with noise, each its own."""
    n = len(x)

    def spread(width: float, *shape: int) -> Tensor:
        return (torch.rand(n, *shape) * 2 - 1) * width

    angle, size = spread(0.35), 1 + spread(0.18)
    mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * size, angle.sin() * size
    rows = [cos * mirror, -sin, spread(0.15), sin * mirror, cos, spread(0.15)]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    x = x * (1 + spread(0.25, 1, 1, 1)) * (1 + spread(0.08, 3, 1, 1)) + spread(0.3, 1, 1, 1)
    return x + torch.randn_like(x) * 0.06 * torch.rand(n, 1, 1, 1)


def train(part: Part, epochs: int) -> nn.Module:
    """Return the moving average of the weights, with the statistics that belong to it."""
    torch.manual_seed(SEED)
    x, y = normalise(torch.from_numpy(part.x).float()), torch.from_numpy(part.y)
    model, steps = build().train(), len(x) // BATCH
    average = deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_RATE, total_steps=epochs * steps, pct_start=WARMUP
    )
    for epoch in range(epochs):
        total, order = 0.0, torch.randperm(len(x))[: steps * BATCH]
        for rows in order.view(steps, BATCH):
            loss = F.cross_entropy(model(augment(x[rows])), y[rows], label_smoothing=0.1)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimiser.step()
            schedule.step()
            total += loss.item()
            for mean, now in zip(
                average.state_dict().values(), model.state_dict().values(), strict=True
            ):
                mean.copy_(mean.lerp(now, 1 - EMA_DECAY) if mean.is_floating_point() else now)
        print(f"epoch {epoch + 1}/{epochs}  loss {total / steps:.3f}", flush=True)
    return average.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write the model as a user's script would; PRESERVE keeps batch normalisations unfolded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation, and advice for models in training mode
        torch.onnx.export(
            model,
            (torch.zeros(2, 3, SIDE, SIDE),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )


def save(part: Part, folder: Path, pattern: str) -> Part:
    """Write ``part`` as JPEG files and return it as those files decode."""
    seen = []
    for name, pixels, digit in zip(part.names, part.x, part.y, strict=True):
        path = folder / pattern.format(digit=digit, name=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=JPEG_QUALITY)
        seen.append(np.asarray(Image.open(path)))
    return Part(part.names, np.stack(seen), part.y)


def top1(path: Path, part: Part) -> float:
    """Return the share of ``part`` that the file at ``path`` gets right in onnxruntime."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = normalise(torch.from_numpy(part.x).float()).numpy()
    right = [
        session.run(None, {"image": images[start : start + BATCH]})[0].argmax(1)
        == part.y[start : start + BATCH]
        for start in range(0, len(images), BATCH)
    ]
    return float(np.concatenate(right).mean())


def write_readme(out: Path, model: nn.Module, held: int, whole: float, jpeg: float) -> None:
    """Write what the folder holds, whose photographs these are, and how well the model reads."""
    text = README.format(
        params=sum(weight.numel() for weight in model.parameters()),
        calib=CALIB_IMAGES,
        eval=EVAL_IMAGES,
        side=SIDE,
        held=held,
        whole=100 * whole,
        jpeg=100 * jpeg,
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, export, write the folder, and print what the exported file reads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="the Sign Language Digits data set, as .tar")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "demo")
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args(argv)
    os.nice(10)
    rng = np.random.default_rng(SEED)
    photographs, licence = read(options.archive)
    held, taught = split(photographs, len(photographs.y) // 4, rng)
    model, out = train(taught, options.epochs), options.out
    for name in ("calib", "eval"):
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    export(model, out / "model.onnx")
    save(split(taught, CALIB_IMAGES, rng)[0], out / "calib", "{digit}_{name}.jpg")
    small = save(split(held, EVAL_IMAGES, rng)[0], out / "eval", "{digit}/{name}.jpg")
    whole, jpeg = top1(out / "model.onnx", held), top1(out / "model.onnx", small)
    (out / "preprocess.toml").write_text(PREPROCESS, encoding="utf-8")
    (out / "LICENSE").write_bytes(licence)
    write_readme(out, model, len(held.y), whole, jpeg)
    print(f"float top-1 {whole:.2%} of {len(held.y)} held out, {jpeg:.2%} of {len(small.y)} JPEGs")
    if whole < FLOOR:
        raise SystemExit(f"that is under {FLOOR:.0%}: do not commit these files")


if __name__ == "__main__":
    main()
