# SPDX-License-Identifier: Apache-2.0
"""Join a recipe and a model input: which size, axes and channels, and do they agree."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qhyvit_onnx.data.input_spec import Array, InputSpec, show_shape
from qhyvit_onnx.data.preprocess import (
    DEFAULT,
    PRESETS,
    Color,
    Layout,
    Recipe,
    fit_preset,
    load_recipe,
)
from qhyvit_onnx.errors import ConfigError, DataError

CHANNELS = (None, 1, 3)
"""Channel counts a picture can fill; a free one is filled with three."""


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One input that reads pictures, with the recipe that makes them."""

    spec: InputSpec
    recipe: Recipe
    label: str
    """Name of the preset or file the recipe came from."""

    def describe(self) -> str:
        """Return the recipe in one line, with its name."""
        return f"{self.label}: {self.recipe.describe()}"

    def read(self, picture: Path | Array, where: str) -> Array:
        """Return one picture in the dtype of the input; DataError when its size is another."""
        out = self.recipe.apply(picture, where)
        found, wanted = (
            _size(out.shape, self.recipe.layout),
            _size(self.spec.shape, self.recipe.layout),
        )
        if any(want not in (None, got) for want, got in zip(wanted, found, strict=True)):
            raise DataError(
                f"{where} is {found[0]}x{found[1]} after the recipe, input {self.spec.name} "
                f"wants {show_shape(wanted)}",
                hint="set resize and crop, or size, in the recipe",
            )
        return out.astype(self.spec.dtype, copy=False)


def image_input(spec: InputSpec, choice: str | Path | Recipe | None) -> ImageInput:
    """Return how pictures reach ``spec``; None chooses the default preset.

    An 8-bit input reads raw pixels: the recipe's scale, mean and std are then left out.

    Error:
        DataError when the input cannot read pictures; ConfigError when the recipe does not fit it.
    """
    if spec.rank != 4 or spec.dtype not in (np.float32, np.uint8):
        raise DataError(
            f"input {spec} cannot read images",
            hint="give arrays (.npy, .npz); images need a float32 or uint8 input of rank 4",
        )
    label = "recipe" if isinstance(choice, Recipe) else str(choice or DEFAULT)
    if label in PRESETS:
        recipe = _fitted(PRESETS[label], spec)
    else:
        recipe = choice if isinstance(choice, Recipe) else load_recipe(label)
        _check_fit(recipe, spec)
    if spec.shape[_channel_axis(recipe.layout)] == 1:
        recipe = replace(recipe, color=Color.GRAY)
    if spec.dtype == np.uint8:
        recipe = replace(recipe, scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return ImageInput(spec, recipe, label)


def _fitted(preset: Recipe, spec: InputSpec) -> Recipe:
    """Return ``preset`` with the axes and the size of ``spec``."""
    layout = _likely_layout(spec)
    _check_channels(layout, spec)
    height, width = _size(spec.shape, layout)
    if height is None or width is None:
        raise _free_size(spec)
    return replace(fit_preset(preset, (height, width)), layout=layout)


def _check_fit(recipe: Recipe, spec: InputSpec) -> None:
    """Raise unless what ``recipe`` makes can be what ``spec`` reads."""
    _check_channels(recipe.layout, spec)
    if recipe.color is Color.GRAY and spec.shape[_channel_axis(recipe.layout)] == 3:
        raise ConfigError(f"the recipe makes gray images, input {spec} wants 3 channels")
    wanted, made = _size(spec.shape, recipe.layout), recipe.out_size
    if made is None and None in wanted:
        raise _free_size(spec)
    if made and any(want not in (None, got) for want, got in zip(wanted, made, strict=True)):
        raise ConfigError(
            f"the recipe makes {made[0]}x{made[1]} images, input {spec.name} "
            f"wants {show_shape(wanted)}",
            hint="change crop or size in the recipe",
        )


def _likely_layout(spec: InputSpec) -> Layout:
    """Return the layout that gives ``spec`` 1 or 3 channels, NCHW when both or neither do."""
    last = spec.shape[3] in (1, 3) and spec.shape[1] not in (1, 3)
    return Layout.NHWC if last else Layout.NCHW


def _check_channels(layout: Layout, spec: InputSpec) -> None:
    if spec.shape[_channel_axis(layout)] not in CHANNELS:
        raise ConfigError(
            f"input {spec} has no axis of 1 or 3 channels where layout {layout} puts it",
            hint="set layout in the recipe, or give arrays (.npy, .npz)",
        )


def _free_size(spec: InputSpec) -> ConfigError:
    usual = (1, 3, 224, 224) if _likely_layout(spec) is Layout.NCHW else (1, 224, 224, 3)
    example = ",".join(str(dim or free) for dim, free in zip(spec.shape, usual, strict=True))
    return ConfigError(
        f"input {spec} leaves its height or width free",
        hint=f"give --input-shape {spec.name}:{example}",
    )


def _channel_axis(layout: Layout) -> int:
    return 1 if layout is Layout.NCHW else 3


def _size(shape: tuple[int | None, ...], layout: Layout) -> tuple[int | None, int | None]:
    """Return (height, width) of a rank 4 shape."""
    return (shape[2], shape[3]) if layout is Layout.NCHW else (shape[1], shape[2])
