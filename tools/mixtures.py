# SPDX-License-Identifier: Apache-2.0
"""Endless training pictures out of a few: each is cropped, turned and relit, then two are mixed.

Mixing is mixup (Zhang et al. 2018, arXiv 1710.09412) or CutMix (Yun et al. 2019, arXiv 1905.04899)
at any ratio: what is asked about a mixture is what a teacher says, never a label, so a mixture may
look like nothing at all. The more strange pictures there are, the fewer real ones it takes (Beyer
et al. 2022, arXiv 2106.05237; Asano and Saeed 2023, arXiv 2112.00725, with one photograph's crops).

Shapes: pictures (N, 3, SIDE, SIDE). Units: (value / 255 - MEAN) / STD, RGB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses
from PIL import Image
from torch import Tensor

SIDE = 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
UNKNOWN = -1
"""The label of a picture that has none."""

SMALLEST_AREA, STRETCH, ANGLE = 0.3, 1.33, 0.2  # share of the picture, wide to high, radians
ALONE, CUT = 0.4, 0.6  # share of pictures left unmixed; of the mixed, those that are cut
SMALLEST_CROP = 48  # pixels of a photograph; below, there is little to see


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures, and their labels (N,), UNKNOWN where there is none."""

    x: Tensor
    y: Tensor

    def take(self, rows: Tensor) -> "Pictures":
        """Return the pictures at ``rows``."""
        return Pictures(self.x[rows], self.y[rows])


def normalise(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Return pixels, (N, SIDE, SIDE, 3), as what the nets read."""
    x = (torch.from_numpy(pixels).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    images: Tensor = x.permute(0, 3, 1, 2).contiguous()  # (N, 3, SIDE, SIDE)
    return images


def read(path: Path) -> Pictures:
    """Return the pictures of an ``.npz``: ``x`` uint8 (N, 32, 32, 3) RGB, ``y`` labels (N,).

    Raises:
        SystemExit: an array is missing or is something else.

    """
    with np.load(path) as arrays:
        if missing := {"x", "y"}.difference(arrays.files):
            raise SystemExit(f"{path} has no array {' and no '.join(sorted(missing))}")
        x, y = arrays["x"], arrays["y"]
    if x.dtype != np.uint8 or x.shape != (len(y), SIDE, SIDE, 3):
        raise SystemExit(
            f"{path}: x is {x.dtype} {x.shape}, not uint8 ({len(y)}, {SIDE}, {SIDE}, 3)"
        )
    return Pictures(normalise(x), torch.from_numpy(y.astype(np.int64)))


def join(parts: Sequence[Pictures]) -> Pictures:
    """Return all pictures as one set."""
    return Pictures(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))


def split(pictures: Pictures, count: int) -> tuple[Pictures, Pictures]:
    """Return the first ``count`` pictures, and the others."""
    rows = torch.arange(len(pictures.y))
    return pictures.take(rows[:count]), pictures.take(rows[count:])


def crops(folder: Path, count: int, rng: np.random.Generator) -> Pictures:
    """Return ``count`` square pieces, of all sizes, of the photographs (``*.jpg``) in a folder.

    Raises:
        SystemExit: there are none.

    """
    photographs = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]
    if not photographs:
        raise SystemExit(f"no *.jpg in {folder}")
    pieces = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        whole = min(photograph.size)
        side = int(np.exp(rng.uniform(np.log(min(SMALLEST_CROP, whole)), np.log(whole))))
        left = int(rng.integers(photograph.width - side + 1))
        top = int(rng.integers(photograph.height - side + 1))
        area = (left, top, left + side, top + side)
        pieces[index] = photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=area)
    return Pictures(normalise(pieces), torch.full((count,), UNKNOWN))


def uniform(low: float, high: float, *shape: int) -> Tensor:
    """Return numbers between ``low`` and ``high``."""
    return torch.rand(*shape) * (high - low) + low


def reframe(x: Tensor) -> Tensor:
    """Return each picture cropped, stretched, turned and mirrored in its own way."""
    n = len(x)
    side, stretch = uniform(SMALLEST_AREA, 1, n).sqrt(), STRETCH ** uniform(-0.5, 0.5, n)
    wide, high = (side * stretch).clamp_max(1), (side / stretch).clamp_max(1)
    angle, mirror = uniform(-ANGLE, ANGLE, n), torch.randint(2, (n,)) * 2 - 1
    left, top = uniform(-1, 1, n) * (1 - wide), uniform(-1, 1, n) * (1 - high)
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * wide * mirror, -sin * high, left, sin * wide * mirror, cos * high, top]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def relight(x: Tensor) -> Tensor:
    """Return each picture with its own contrast, saturation, tint and brightness."""
    n = len(x)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * uniform(0.4, 1.4, n, 1, 1, 1)
    gain = uniform(0.7, 1.3, n, 1, 1, 1) * uniform(0.9, 1.1, n, 3, 1, 1)
    return x * gain + uniform(-0.4, 0.4, n, 1, 1, 1)


def windows(share: Tensor) -> Tensor:
    """Return masks (N, 1, SIDE, SIDE): 1 in a square that covers ``share`` (N,) of the picture.

    Less where the square, whose centre may be anywhere, leaves the picture.
    """
    n, places = len(share), torch.arange(SIDE)
    reach = (share.sqrt() * SIDE / 2).view(n, 1)
    inside = [(places - uniform(0, SIDE, n, 1)).abs() < reach for _ in range(2)]  # (N, SIDE) each
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None].float()


def mix(pictures: Pictures) -> Pictures:
    """Return each picture with some of another in it, a few left alone; only those keep labels."""
    n = len(pictures.y)
    share = torch.rand(n)
    cut, alone = torch.rand(n) < CUT, torch.rand(n) < ALONE
    mask = torch.where(cut.view(n, 1, 1, 1), windows(share), share.view(n, 1, 1, 1))
    mask = mask * ~alone.view(n, 1, 1, 1)
    x = pictures.x.lerp(pictures.x[torch.randperm(n)], mask)
    return Pictures(x, torch.where(alone, pictures.y, UNKNOWN))


def draw(sources: Sequence[tuple[Pictures, int]]) -> Pictures:
    """Return new pictures, so many from each source, mixed across them.

    Everything random comes from torch's global generator.
    """
    chosen = join([part.take(torch.randint(len(part.y), (n,))) for part, n in sources if n])
    return mix(Pictures(relight(reframe(chosen.x)), chosen.y))
