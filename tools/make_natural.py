"""Cut the natural photographs that qhyvit_onnx carries for calibration without a data set.

The pictures are those scikit-image ships inside its wheel and whose notes there say CC0, public
domain or no known copyright restrictions; the others it ships have no such note and are left out.

    python tools/make_natural.py [--out qhyvit_onnx/assets/natural]

writes the crops and SOURCES.md. The same seed, Pillow and scikit-image give the same files.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIDE, JPEG_QUALITY, SEED = 256, 85, 0
SMALLEST = 192  # pixels of the source a crop spans at least: below, it is mostly interpolation
TRIES = 24


@dataclass(frozen=True, slots=True)
class Source:
    """One picture: its file in the package, what it shows, whose it is, and how many crops."""

    file: str
    shows: str
    origin: str
    licence: str
    crops: int

    @property
    def stem(self) -> str:
        """Return the first part of every crop's file name."""
        return Path(self.file).stem


CC0, PUBLIC = "CC0", "public domain"

SOURCES = (
    Source("astronaut.png", "portrait of Eileen Collins", "NASA, Great Images database", PUBLIC, 8),
    Source("brick.png", "brick wall", "CC0Textures, Bricks25", CC0, 2),
    Source("camera.png", "photographer on a lawn", "Lav Varshney", CC0, 5),
    Source("chelsea.png", "a cat", "Stefan van der Walt", CC0, 7),
    Source("clock_motion.png", "wall clock, blurred", "Stefan van der Walt", PUBLIC, 1),
    Source("coffee.png", "coffee cup", "Rachel Michetti, courtesy of Pikolo Espresso Bar", CC0, 8),
    Source(
        "coins.png",
        "Greek coins from Pompeii",
        "Brooklyn Museum Collection, archives, image 51611",
        "no known copyright restrictions",
        1,
    ),
    Source("grass.png", "grass", "linolafett, DeviantArt, Grass 01", CC0, 2),
    Source("gravel.png", "gravel", "CC0Textures, Gravel04", CC0, 2),
    Source("hubble_deep_field.jpg", "galaxies", "NASA, HubbleSite release 2012-37", PUBLIC, 3),
    Source("retina.jpg", "fundus of an eye", "Mikael Häggström, Wikimedia Commons", CC0, 2),
    Source("rocket.jpg", "launch of DSCOVR on Falcon 9", "SpaceX, SpaceX Photos", PUBLIC, 7),
)

Box = tuple[int, int, int]
"""Left, top and side of a square, in pixels of the source."""


def photographs() -> Path:
    """Return scikit-image's data folder, without importing the package."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("the pictures come out of scikit-image: pip install scikit-image==0.26.0")
    return Path(spec.origin).parent / "data"


def overlap(a: Box, b: Box) -> float:
    """Return intersection over union."""
    wide, high = (min(a[i] + a[2], b[i] + b[2]) - max(a[i], b[i]) for i in (0, 1))
    both = max(wide, 0) * max(high, 0)
    return both / (a[2] ** 2 + b[2] ** 2 - both)


def boxes(width: int, height: int, count: int, rng: np.random.Generator) -> list[Box]:
    """Return squares of many sizes, each the one of ``TRIES`` that repeats the least."""
    taken: list[Box] = []
    for _ in range(count):
        tried: list[Box] = []
        for _ in range(TRIES):
            side = int(np.exp(rng.uniform(np.log(SMALLEST), np.log(min(width, height)))))
            left, top = rng.integers(width - side + 1), rng.integers(height - side + 1)
            tried.append((int(left), int(top), side))
        taken.append(
            min(tried, key=lambda box: max((overlap(box, old) for old in taken), default=0.0))
        )
    return taken


def cut(source: Source, folder: Path, out: Path, rng: np.random.Generator) -> int:
    """Write the crops of one picture and return their bytes."""
    picture, total = Image.open(folder / source.file).convert("RGB"), 0
    for number, (left, top, side) in enumerate(boxes(*picture.size, source.crops, rng)):
        area = (left, top, left + side, top + side)
        crop = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=area)
        if rng.random() < 0.5:
            crop = ImageOps.mirror(crop)
        path = out / f"{source.stem}_{number}.jpg"
        crop.save(path, quality=JPEG_QUALITY, optimize=True)
        total += path.stat().st_size
    return total


def sources_text() -> str:
    """Return SOURCES.md: where each picture comes from, and what was done to it."""
    lines = [
        "# Where these photographs come from",
        "",
        "Square crops of pictures that scikit-image 0.26.0 ships as `skimage.data`, with the",
        "licence that its documentation notes for each. `tools/make_natural.py` made the crops:",
        f"seeded places and sizes, resized to {SIDE}x{SIDE}, some mirrored, encoded as JPEG.",
        "Pictures without such a licence note were left out.",
        "",
        "| crops | file in scikit-image | shows | author or origin | licence |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{s.stem}_*.jpg` ({s.crops}) | `{s.file}` | {s.shows} | {s.origin} | {s.licence} |"
        for s in SOURCES
    ]
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Write the folder anew and print how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[1] / "qhyvit_onnx" / "assets" / "natural"
    parser.add_argument("--out", type=Path, default=default)
    out: Path = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.jpg"):
        old.unlink()
    folder = photographs()
    total = sum(
        cut(source, folder, out, np.random.default_rng([SEED, index]))
        for index, source in enumerate(SOURCES)
    )
    (out / "SOURCES.md").write_text(sources_text(), encoding="utf-8")
    print(f"{sum(source.crops for source in SOURCES)} crops, {total:,} bytes, in {out}")


if __name__ == "__main__":
    main()
