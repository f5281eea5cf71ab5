# SPDX-License-Identifier: Apache-2.0
"""The options of ``eval`` that say what both models run on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qhyvit_onnx.commands import _options
from qhyvit_onnx.commands._options import Command

if TYPE_CHECKING:
    from qhyvit_onnx.data import Feeds, InputSpec

OPTIONS = (
    click.option(
        "--data",
        required=True,
        metavar="DATA",
        help="Folder of images, image, .npy, .npz, folder of those, or the word random.",
    ),
    click.option(
        "--labels",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Class of every sample in the order of the data: .npy, or a number a line. "
        "Without it: class folders, or labels in the .npz.",
    ),
    _options.preprocess,
    click.option(
        "--samples",
        type=click.IntRange(min=1),
        help="Take so many at most, drawn by the seed  [default: all]",
    ),
    _options.input_shape,
    _options.seed,
)


@dataclass(frozen=True, slots=True)
class Samples:
    """What is evaluated on."""

    data: str
    labels: Path | None
    preprocess: str | None
    samples: int | None
    input_shapes: tuple[str, ...]
    seed: int

    def open(self, inputs: "list[InputSpec]") -> "Feeds":
        """Open the data; labels from a file belong to all of it, so the draw comes after them."""
        from qhyvit_onnx.data import open_feeds
        from qhyvit_onnx.data.labels import draw, read_labels, with_labels

        known = read_labels(self.labels) if self.labels else None
        feeds = open_feeds(
            self.data,
            inputs,
            samples=None if self.labels else self.samples,
            seed=self.seed,
            preprocess=self.preprocess,
            shapes=_options.shapes(self.input_shapes),
        )
        if known is None:
            return feeds
        feeds = with_labels(feeds, known)
        return draw(feeds, self.samples, self.seed) if self.samples else feeds


def samples(command: Command) -> Command:
    """Let ``command`` take all of OPTIONS, as one argument ``samples``."""
    shared = ("preprocess", "input_shapes", "seed")  # a simulation takes them too
    return _options.gathered(command, OPTIONS, Samples, "samples", shared=shared)
