# SPDX-License-Identifier: Apache-2.0
"""Crops of photographs to calibrate and evaluate on, from a folder or from scikit-image's wheel."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Batch = npt.NDArray[np.float32]

CROPS = 64

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
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB


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
