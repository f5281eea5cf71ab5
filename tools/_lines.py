# SPDX-License-Identifier: Apache-2.0
"""Draws lines of text as a recogniser meets them: turned, blurred, noisy, on photographs."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Lines = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.float64]

HEIGHT = 48  # what both recognisers are trained on


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """How hard lines are to read; a range is drawn from evenly, line by line."""

    letters: tuple[int, int]
    """Shortest and longest name."""
    contrast: tuple[float, float]
    """Grey levels between ink and the mean of what it stands on, of 255."""
    blur: float
    """Largest radius, pixels."""
    noise: float
    """Largest standard deviation, grey levels."""
    photo_contrast: float
    """Of backgrounds cut from photographs; on full contrast nobody can read parts of a line."""
    squeeze: float = 1.0
    """Narrowest width a line is pressed to, as a share of its own."""


STANDARD = Difficulty(letters=(6, 22), contrast=(60, 170), blur=1.4, noise=22, photo_contrast=0.6)
"""What calibration and the per-step comparison use: long names, rarely read without a fault."""

WORDS = Difficulty(
    letters=(4, 10), contrast=(60, 160), blur=1.5, noise=25, photo_contrast=0.6, squeeze=0.8
)
"""What word accuracy uses: shorter names on worse pictures. Chosen so that a recogniser reads
about nine of ten: where nearly all or nearly none are read, a loss would not show."""


# A name starts with a consonant: a capital I is the letter l in many fonts, and unreadable alone.
CONSONANTS = list("bcdfghjklmnprstvwz")
VOWELS = list("aeiouy")

# scikit-image's wheel carries these: CC0 or public domain by its own notes.
PHOTOGRAPHS = ("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "rocket.jpg")


def package_folder(package: str, pip: str) -> Path:
    """Return where ``package`` is installed, without importing it and what it depends on."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed; run: {pip}")
    return Path(spec.submodule_search_locations[0])


def photographs() -> list[Image.Image]:
    """Return the photographs that backgrounds are cut from."""
    folder = package_folder("skimage", "pip install scikit-image") / "data"
    return [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]


def _name(rng: np.random.Generator, difficulty: Difficulty) -> str:
    """Return a pronounceable name."""
    shortest, longest = difficulty.letters
    length = int(rng.integers(shortest, longest + 1))
    letters = [str(rng.choice(VOWELS if i % 2 else CONSONANTS)) for i in range(length)]
    return "".join(letters).capitalize()


def _ink(text: str, rng: np.random.Generator, width: int, squeeze: float) -> Image.Image:
    """Return the coverage of ``text``, slightly turned, cut tight, small enough for a line."""
    font = ImageFont.load_default(size=float(rng.integers(26, 41)))
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(mask).text((4 - left, 4 - top), text, fill=255, font=font)
    mask = mask.rotate(rng.uniform(-3, 3), Image.Resampling.BICUBIC, expand=True)
    mask = mask.crop(mask.getbbox())
    if squeeze < 1:
        share = rng.uniform(squeeze, 1)
        mask = mask.resize((max(round(mask.width * share), 1), mask.height))
    mask.thumbnail((width - 8, HEIGHT - 4), Image.Resampling.LANCZOS)
    return mask


def _background(
    size: tuple[int, int], rng: np.random.Generator, photos: list[Image.Image], contrast: float
) -> Pixels:
    """Return one flat colour, one slope of colour, or a piece of a photograph: (H, W, 3)."""
    width, height = size
    kind = rng.integers(3)
    if kind == 2:
        photo = photos[rng.integers(len(photos))]
        zoom = rng.uniform(0.5, 1.0)  # keep some pieces coarse, some fine
        w, h = min(int(width * zoom), photo.width - 1), int(height * zoom)
        x, y = int(rng.integers(photo.width - w)), int(rng.integers(photo.height - h))
        piece = np.asarray(photo.resize(size, box=(x, y, x + w, y + h)), np.float64)
        mean: Pixels = piece.mean(axis=(0, 1))
        return mean + contrast * (piece - mean)
    first, last = rng.uniform(0, 255, (2, 3))
    slope = np.linspace(0, 1, width)[None, :, None] * (kind == 1)
    return np.broadcast_to(first + (last - first) * slope, (height, width, 3))


def _ink_colour(back: Pixels, rng: np.random.Generator, contrasts: tuple[float, float]) -> Pixels:
    """Return a colour that stands off the mean of ``back`` to the side with more room."""
    mean = float(back.mean())
    contrast = rng.uniform(*contrasts)
    grey = mean - contrast if mean > 127 else mean + contrast
    return np.clip(grey + rng.uniform(-25, 25, 3), 0, 255)


def draw(
    text: str,
    rng: np.random.Generator,
    photos: list[Image.Image],
    width: int,
    difficulty: Difficulty = STANDARD,
) -> Lines:
    """Return ``text`` drawn as one line.

    Shapes: (3, HEIGHT, width), channels BGR.
    Units: (x / 255 - 0.5) / 0.5; right of the line it is zero, as the recognisers' own padding.
    """
    mask = _ink(text, rng, width, difficulty.squeeze)
    left, right = rng.integers(2, 13, 2)
    line_width = min(width, int(left) + mask.width + int(right))
    left = min(int(left), line_width - mask.width)
    cover = Image.new("L", (line_width, HEIGHT))
    cover.paste(mask, (left, int(rng.integers(HEIGHT - mask.height + 1))))
    alpha = np.asarray(cover, np.float64)[:, :, None] / 255  # (H, W, 1)
    back = _background(cover.size, rng, photos, difficulty.photo_contrast)
    flat = back * (1 - alpha) + _ink_colour(back, rng, difficulty.contrast) * alpha  # (H, W, 3)
    blurred = Image.fromarray(flat.astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(rng.uniform(0, difficulty.blur))
    )
    spread = rng.uniform(0, difficulty.noise)
    noisy = np.asarray(blurred, np.float64) + rng.normal(0, spread, flat.shape)
    bgr = np.clip(noisy, 0, 255)[:, :, ::-1].transpose(2, 0, 1)  # (3, H, W)
    line = np.zeros((3, HEIGHT, width), np.float32)
    line[:, :, :line_width] = (bgr / 255 - 0.5) / 0.5
    return line


def lines(
    count: int, seed: int, width: int = 320, difficulty: Difficulty = STANDARD
) -> tuple[Lines, list[str]]:
    """Return ``count`` drawn lines, (count, 3, 48, width), and what each says."""
    rng = np.random.default_rng(seed)
    photos = photographs()
    texts = [_name(rng, difficulty) for _ in range(count)]
    return np.stack([draw(text, rng, photos, width, difficulty) for text in texts]), texts
