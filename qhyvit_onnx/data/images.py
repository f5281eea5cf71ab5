# SPDX-License-Identifier: Apache-2.0
"""Image files: find them in a folder, decode one to 8-bit RGB, refuse what cannot be trusted."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from qhyvit_onnx.errors import DataError

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
})  # fmt: skip
"""File names that count as images, lower case."""


def files_below(folder: Path) -> list[Path]:
    """Return every file below ``folder``, sorted; hidden ones are left out, links are followed."""
    return sorted(_walk(folder, frozenset()), key=lambda path: os.fsencode(path.as_posix()))


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    """Yield files, never entering a folder from inside itself (a loop of links)."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, above | {real})
        elif entry.is_file():
            yield folder / entry.name


def class_labels(paths: Sequence[Path]) -> tuple[int, ...] | None:
    """Return the class of every image, None unless each is in a sub-folder of one folder.

    That folder is the deepest that holds them all. The class is the name of the sub-folder: its
    number when all names are numbers, else its rank among all, sorted by name, empty ones included.
    """
    root = Path(os.path.commonpath([path.parent for path in paths]))
    parts = [path.relative_to(root).parts for path in paths]
    if min(map(len, parts)) < 2:
        return None
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    numeric = all(name.isascii() and name.isdigit() for name in folders)
    ranks = {name: int(name) if numeric else rank for rank, name in enumerate(folders)}
    return tuple(ranks[part[0]] for part in parts)


def read_rgb(path: Path) -> Image.Image:
    """Return the first frame of an image file as 8-bit RGB, turned upright, alpha dropped.

    Error:
        DataError naming the file when it is damaged, cut short, not an image, or too large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                image.load()
                return to_rgb(ImageOps.exif_transpose(image), str(path))
        except DataError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            hint = "shrink it or take it out of the folder"
            raise DataError(f"{path} has too many pixels to be opened", hint=hint) from error
        except Exception as error:  # a damaged file makes decoders raise almost anything
            raise DataError(
                f"cannot read image {path}: {error or type(error).__name__}",
                hint="repair it or take it out of the folder",
            ) from error


def to_rgb(image: Image.Image, where: str) -> Image.Image:
    """Return ``image`` as 8-bit RGB: 16-bit grey is scaled, float pixels are a DataError."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise DataError(f"{where} holds pixels outside 0 to 65535", hint="save it with 8 bits")
        image = Image.fromarray(((wide * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8))
    elif image.mode == "F":
        raise DataError(f"{where} holds float pixels of unknown range", hint="save it with 8 bits")
    return image.convert("RGB")
