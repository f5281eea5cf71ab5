# SPDX-License-Identifier: Apache-2.0
"""From a picture to what the model reads: recipes, their presets and their TOML files.

The presets equal the evaluation transform of timm and torchvision on Pillow for a square input:
short side to floor(size / 0.875), bicubic, centre crop, 0..1, normalise. For an input that is not
square they resize to exactly its height and width, because a crop would cut the content away.
"""

import json
import math
import tomllib
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict, TypeAdapter, ValidationError

from qhyvit_onnx.data.images import read_rgb
from qhyvit_onnx.errors import ConfigError, DataError

Triple: TypeAlias = tuple[float, float, float]

CROP_PERCENT = 0.875
"""Size of the centre crop as a fraction of the short side: timm's default."""


class Interpolation(StrEnum):
    """How pixels are resampled (Pillow's filters, which smooth when shrinking)."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class Color(StrEnum):
    """Order of the channels."""

    RGB = "rgb"
    BGR = "bgr"
    GRAY = "gray"
    """One channel (ITU-R 601 luma); mean and std are then averaged over their three values."""


class Layout(StrEnum):
    """Order of the axes."""

    NCHW = "nchw"
    NHWC = "nhwc"


FILTERS = {
    Interpolation.NEAREST: Image.Resampling.NEAREST,
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Resize, crop, reorder, ``(pixel * scale - mean) / std``. The fields are the TOML keys."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    resize: int = 0
    """Length of the short side after resizing, aspect kept; 0: not resized."""
    crop: int = 0
    """Side of the square cut from the centre; 0: not cropped."""
    size: tuple[int, int] = (0, 0)
    """Height and width to resize to, aspect not kept; used instead of ``resize`` and ``crop``."""
    interpolation: Interpolation = Interpolation.BICUBIC
    color: Color = Color.RGB
    scale: float = 1.0 / 255.0
    """Pixels are 0 to 255 before it."""
    mean: Triple = (0.0, 0.0, 0.0)
    """Taken off after ``scale``, in the order of ``color``."""
    std: Triple = (1.0, 1.0, 1.0)
    layout: Layout = Layout.NCHW

    def __post_init__(self) -> None:
        """Reject what no image could satisfy."""
        if min(self.resize, self.crop, *self.size) < 0 or (self.size[0] == 0) != (
            self.size[1] == 0
        ):
            raise ConfigError("recipe: resize, crop and size are lengths in pixels, 0 for none")
        if self.size[0] and (self.resize or self.crop):
            raise ConfigError("recipe: size excludes resize and crop", hint="give one or the other")
        if self.resize and self.crop > self.resize:
            raise ConfigError(f"recipe: crop {self.crop} is larger than resize {self.resize}")
        numbers = (self.scale, *self.mean, *self.std)
        if not all(map(math.isfinite, numbers)) or self.scale <= 0 or min(self.std) <= 0:
            raise ConfigError("recipe: scale, mean and std must be finite, scale and std above 0")

    @property
    def out_size(self) -> tuple[int, int] | None:
        """Height and width of every result, None when they depend on the image."""
        if self.size[0]:
            return self.size
        return (self.crop, self.crop) if self.crop else None

    def describe(self) -> str:
        """Return the recipe in one line."""
        exact = f"resize to {self.size[0]}x{self.size[1]}" if self.size[0] else ""
        steps = (
            exact or (f"resize short side {self.resize}" if self.resize else "no resize"),
            "" if exact else (f"centre crop {self.crop}" if self.crop else "no crop"),
            self.interpolation,
            self.color,
            f"scale {self.scale:.6g}",
            "mean " + " ".join(f"{m:g}" for m in self.mean),
            "std " + " ".join(f"{s:g}" for s in self.std),
            self.layout,
        )
        return ", ".join(step for step in steps if step)

    def apply(self, picture: Path | str | NDArray[Any], where: str = "") -> NDArray[np.float32]:
        """Return one picture as the model reads it.

        Shapes:
            picture (H, W, 3 or 4 or 1) or (H, W) uint8, or the path of an image file;
            result (1, C, H', W') or (1, H', W', C), C = 1 for gray.

        Error:
            Values are computed in float64 and rounded once to float32.
        """
        if isinstance(picture, np.ndarray):
            where = where or "array"
            image = _from_array(picture, where)
        else:
            where = where or str(picture)
            image = read_rgb(Path(picture))
        image = self._fit(image, where)
        return self._values(image)

    def _fit(self, image: Image.Image, where: str) -> Image.Image:
        """Resize and crop as torchvision does, its rounding included."""
        width, height = image.size
        if self.size[0]:
            return image.resize((self.size[1], self.size[0]), FILTERS[self.interpolation])
        if self.resize:
            short, long = sorted((width, height))
            far = int(self.resize * long / short)
            width, height = (self.resize, far) if width <= height else (far, self.resize)
            image = image.resize((width, height), FILTERS[self.interpolation])
        if not self.crop:
            return image
        if self.crop > min(width, height):
            raise DataError(
                f"{where} is {height}x{width}, too small for a crop of {self.crop}",
                hint="set resize in the recipe",
            )
        left, top = (round((length - self.crop) / 2.0) for length in (width, height))
        return image.crop((left, top, left + self.crop, top + self.crop))

    def _values(self, image: Image.Image) -> NDArray[np.float32]:
        """Look every pixel up in a table of 256 values a channel."""
        if self.color is Color.GRAY:
            pixels = np.asarray(image.convert("L"))[..., None]
            mean, std = np.mean(self.mean, keepdims=True), np.mean(self.std, keepdims=True)
        else:
            pixels = np.asarray(image)[..., :: -1 if self.color is Color.BGR else 1]
            mean, std = np.asarray(self.mean), np.asarray(self.std)
        levels = np.arange(256.0) * self.scale
        table = ((levels - mean[:, None]) / std[:, None]).astype(np.float32)  # (C, 256)
        planes = [row[pixels[..., channel]] for channel, row in enumerate(table)]
        out: NDArray[np.float32] = np.stack(planes, axis=0 if self.layout is Layout.NCHW else -1)
        return out[None]


def _from_array(pixels: NDArray[Any], where: str) -> Image.Image:
    """Return (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) 8-bit pixels as an RGB picture."""
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    channels = pixels.shape[2:] in ((), (3,), (4,))
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or not channels or pixels.size == 0:
        found = f"{pixels.dtype} {list(pixels.shape)}"
        raise DataError(f"{where}: expected 8-bit pixels [H, W, 3] or [H, W], found {found}")
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


PRESETS = {
    "imagenet": Recipe(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "unit": Recipe(),
    "symmetric": Recipe(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
}
"""Named recipes; their size comes from the model."""

DEFAULT = "imagenet"
"""Taken, and said aloud, when the user names none."""


def load_recipe(choice: str | Path, size: tuple[int, int] | None = None) -> Recipe:
    """Return the preset of that name, fitted to ``size`` (height, width), or a TOML file's recipe.

    A preset without ``size`` neither resizes nor crops. A file is taken as it is.
    """
    name = str(choice)
    if name in PRESETS:
        return fit_preset(PRESETS[name], size) if size else PRESETS[name]
    path = Path(choice)
    known = f"use {', '.join(PRESETS)} or a .toml file"
    if not path.is_file():
        raise ConfigError(f"--preprocess {name!r} is no preset and no file", hint=known)
    try:
        return _validated(tomllib.loads(path.read_text(encoding="utf-8")), name)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} is not a TOML file: {error}", hint=known) from error
    except OSError as error:
        raise ConfigError(f"cannot read {name}: {error.strerror}", hint=known) from error


def fit_preset(recipe: Recipe, size: tuple[int, int]) -> Recipe:
    """Return ``recipe`` for an input of ``size``: short side and crop, or exact when not square."""
    height, width = size
    if height != width:
        return replace(recipe, size=(height, width))
    return replace(recipe, resize=math.floor(height / CROP_PERCENT), crop=height)


def _validated(table: dict[str, Any], name: str) -> Recipe:
    """Return the recipe a table describes; ConfigError naming the first bad key."""
    try:
        # JSON mode: strict about numbers, yet lists are tuples and words are enum members.
        return TypeAdapter(Recipe).validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        known = ", ".join(field.name for field in fields(Recipe))
        raise ConfigError(f"{name}: {key}: {first['msg']}", hint=f"keys are {known}") from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.message}", hint=error.hint) from error
