# SPDX-License-Identifier: Apache-2.0
"""The trained models that accuracy is measured on, each with its calibration and test samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from _bench import Feed, npz_feeds
from numpy.typing import NDArray

from qhyvit_onnx.data import open_feeds
from qhyvit_onnx.model_io import input_specs

DEMO = Path(__file__).parent / "demo"
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
OCR_LINES = 120


@dataclass(frozen=True, slots=True)
class View:
    """A picture mirrored or not, and moved; what comes in at the edge repeats the edge."""

    mirrored: bool
    down: int
    right: int

    def of(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the shape of ``x``, (N, C, H, W)."""
        x = x[..., ::-1] if self.mirrored else x
        room = max(abs(self.down), abs(self.right))
        padded = np.pad(x, ((0, 0), (0, 0), (room, room), (room, room)), mode="edge")
        top, left = room - self.down, room - self.right
        moved = padded[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        return np.ascontiguousarray(moved)


VIEWS = tuple(
    View(mirrored, down, right)
    for down, right in ((0, 0), (2, 2), (-2, 2), (0, -2))
    for mirrored in (False, True)
)


@dataclass(frozen=True, slots=True)
class Case:
    """One model with its data."""

    model: Path
    calib: Sequence[Feed]
    evaluation: Sequence[Feed]
    labels: Sequence[int] | None = None
    shapes: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.model.stem

    def drawn(self, samples: int, seed: int) -> list[Feed]:
        """Return calibration samples in a seeded order."""
        order = np.random.default_rng(seed).permutation(len(self.calib))[:samples]
        return [self.calib[int(i)] for i in order]

    def views(self, count: int, size: int) -> Iterator[tuple[Feed, list[int] | None]]:
        """Yield batches of the test pictures as ``count`` views of each, the plain one first.

        A drop of a few tenths of a point is within chance on some thousand pictures; the same
        pictures mirrored and moved by two pixels are further ones that the net was trained for.
        """
        for move in VIEWS[:count]:
            for feed, labels in self.batches(size):
                yield {name: move.of(x) for name, x in feed.items()}, labels

    def batches(self, size: int) -> Iterator[tuple[Feed, list[int] | None]]:
        """Yield the test samples with their labels, ``size`` at once where the batch is free."""
        dims = onnx.load(self.model).graph.input[0].type.tensor_type.shape.dim
        step = 1 if dims[0].dim_value else size
        for start in range(0, len(self.evaluation), step):
            part = self.evaluation[start : start + step]
            feed = {name: np.concatenate([item[name] for item in part]) for name in part[0]}
            yield feed, None if self.labels is None else list(self.labels[start : start + step])


def cases(ocr: Path | None, cifar: Path | None, extra: Sequence[Path] = ()) -> Iterator[Case]:
    """Yield every model whose data is there; ``extra`` are further models of CIFAR-10 images."""
    yield demo_case()
    if ocr is not None:
        yield from ocr_cases(ocr)
    if cifar is not None:
        yield from cifar_cases(cifar, extra)


def demo_case() -> Case:
    """Return the bundled model with its bundled pictures."""
    model = DEMO / "model.onnx"
    specs = input_specs(onnx.load(model))
    recipe = str(DEMO / "preprocess.toml")
    calib = open_feeds(DEMO / "calib", specs, preprocess=recipe)
    evaluation = open_feeds(DEMO / "eval", specs, preprocess=recipe)
    return Case(model, list(calib), list(evaluation), evaluation.labels)


def ocr_cases(folder: Path) -> Iterator[Case]:
    """Yield the text recognisers, with lines that ``tools/ocr_lines.py`` has drawn."""
    calib = npz_feeds(folder / "ocr_calib.npz")
    lines = npz_feeds(folder / "ocr_eval.npz", OCR_LINES)
    for model in sorted(folder.glob("ppocr_*_rec.onnx")):
        yield Case(model, calib, lines, shapes=(1, 3, 48, 320))


def cifar_cases(folder: Path, extra: Sequence[Path] = ()) -> Iterator[Case]:
    """Yield the models trained on CIFAR-10, with 1,024 training and 5,000 test images."""
    calib, _ = _cifar(folder / "data" / "cifar10_calib.npz")
    images, labels = _cifar(folder / "data" / "cifar10_eval.npz")
    for model in (*sorted((folder / "models").glob("*_cifar10.onnx")), *extra):
        yield Case(model, calib, images, labels)


def _cifar(path: Path) -> tuple[list[Feed], list[int]]:
    with np.load(path) as arrays:
        pixels, labels = arrays["x"], arrays["y"]
    scaled = (pixels / np.float32(255) - np.float32(CIFAR_MEAN)) / np.float32(CIFAR_STD)
    planes = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
    return [{"x": planes[i : i + 1]} for i in range(len(planes))], [int(y) for y in labels]
