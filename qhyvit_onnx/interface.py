# SPDX-License-Identifier: Apache-2.0
"""What goes into and out of an emitted model when that is not what the float model takes.

``--embed-preprocess`` lets the model take pixels, ``--io uint8`` bytes; whoever compares the two
models feeds both through here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qhyvit_onnx.data import Feed, InputSpec
from qhyvit_onnx.data.image_input import image_input
from qhyvit_onnx.data.preprocess import Layout, Recipe
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.grid import Grid

KEY = "qhyvit_onnx.io"
"""Key of the metadata in which an emitted model tells its interface, as JSON."""

BYTES = Grid(1.0, 0)
"""The grid of pixels: a byte is its own value."""


class Runner(Protocol):
    """What runs a model: a session, or a simulation of one."""

    inputs: list[str]
    outputs: list[str]

    def run(self, feeds: Mapping[str, NDArray[Any]], wanted: Sequence[str] | None = None) -> Feed:
        """Return outputs by name."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """How pixels, 0 to 255, become values of one input: ``pixel * gain - shift`` by channel."""

    name: str
    gain: tuple[float, ...]
    shift: tuple[float, ...]
    shape: tuple[int, ...]
    """Of gain and shift, to broadcast against the input."""

    @classmethod
    def of(cls, inputs: Sequence[InputSpec], preprocess: str | Path | Recipe | None) -> "Pixels":
        """Return what ``preprocess`` does to the input that reads pictures.

        Error:
            ConfigError when there is not exactly one float input of rank 4.
        """
        fit = [spec for spec in inputs if spec.rank == 4 and spec.dtype == np.float32]
        if len(fit) != 1:
            raise ConfigError(f"--embed-preprocess needs one image input, the model has {len(fit)}")
        found = image_input(fit[0], preprocess).recipe
        first = found.layout is Layout.NCHW
        channels = fit[0].shape[1 if first else 3] or 3
        mean, std = np.asarray(found.mean), np.asarray(found.std)
        if channels == 1:
            mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
        shape = (1, channels, 1, 1) if first else (1, 1, 1, channels)
        gain, shift = found.scale / std, mean / std
        return cls(fit[0].name, tuple(gain.tolist()), tuple(shift.tolist()), shape)

    def pixels_in(self, feed: Feed) -> Feed:
        """Return ``feed`` with pixels in place of values, whole numbers and within 0 to 255."""
        gain, shift = (np.reshape(part, self.shape) for part in (self.gain, self.shift))
        pixels = np.rint((feed[self.name].astype(np.float64) + shift) / gain)
        return {**feed, self.name: np.clip(pixels, 0, 255).astype(np.float32)}

    def embedded(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return ``model`` with the arithmetic in front: its input takes pixels."""
        made = onnx.ModelProto()
        made.CopyFrom(model)
        graph, taken = made.graph, {name for node in model.graph.node for name in node.output}
        values, scaled = f"{self.name}.values", f"{self.name}.scaled"
        while {values, scaled} & taken:
            values, scaled = f"{values}_", f"{scaled}_"
        for node in graph.node:
            node.input[:] = [values if name == self.name else name for name in node.input]
        for name, part in ((f"{values}.gain", self.gain), (f"{values}.shift", self.shift)):
            array = np.reshape(part, self.shape).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(array, name))
        front = [
            helper.make_node("Mul", [self.name, f"{values}.gain"], [scaled], name=scaled),
            helper.make_node("Sub", [scaled, f"{values}.shift"], [values], name=values),
        ]
        rest = list(graph.node)
        del graph.node[:]
        graph.node.extend([*front, *rest])
        return made


@dataclass(frozen=True, slots=True)
class Interface:
    """What differs from the float model: nothing, by default."""

    pixels: Pixels | None = None
    inputs: Mapping[str, Grid] = field(default_factory=dict)
    """Inputs that take codes, on which grid."""
    outputs: Mapping[str, Grid] = field(default_factory=dict)
    """Outputs that are codes."""

    def encode(self, feed: Mapping[str, NDArray[Any]]) -> Feed:
        """Return what the emitted model takes for what the compiled graph takes: codes."""
        return {
            name: _codes(array, self.inputs[name]) if name in self.inputs else array
            for name, array in feed.items()
        }

    def decode(self, found: Mapping[str, NDArray[Any]]) -> Feed:
        """Return what the emitted model computed, as floats."""
        return {
            name: _floats(array, self.outputs[name]) if name in self.outputs else array
            for name, array in found.items()
        }

    def told(self) -> dict[str, str]:
        """Return by input and output what it is, in words; those only that are not as in float."""
        pixels = {} if self.pixels is None else {self.pixels.name: "float32: pixels, 0 to 255"}
        codes = {
            name: f"uint8: {'pixels' if name in pixels else _words(grid)}"
            for name, grid in (*self.inputs.items(), *self.outputs.items())
        }
        return pixels | codes

    def metadata(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of(cls, model: onnx.ModelProto) -> "Interface":
        """Return the interface that an emitted model tells of itself."""
        entries = {item.key: item.value for item in model.metadata_props}
        if KEY not in entries:
            return cls()
        told = json.loads(entries[KEY])
        pixels = told["pixels"] and Pixels(
            told["pixels"]["name"], *(tuple(told["pixels"][k]) for k in ("gain", "shift", "shape"))
        )
        grids = [
            {name: Grid(**grid) for name, grid in told[ends].items()}
            for ends in ("inputs", "outputs")
        ]
        return cls(pixels, *grids)


@dataclass
class Coded:
    """Runs an emitted model on what the compiled graph takes, and gives what that gives.

    With ``values``: on what the float model takes, if that graph takes pixels.
    """

    runner: Runner
    interface: Interface
    values: bool = False

    def __post_init__(self) -> None:
        """Take the names of the model."""
        self.inputs, self.outputs = self.runner.inputs, self.runner.outputs

    def run(self, feeds: Mapping[str, NDArray[Any]], wanted: Sequence[str] | None = None) -> Feed:
        """Return outputs by name, as floats."""
        pixels = self.interface.pixels if self.values else None
        feed = pixels.pixels_in(dict(feeds)) if pixels else feeds
        return self.interface.decode(self.runner.run(self.interface.encode(feed), wanted))


def _codes(array: NDArray[Any], grid: Grid) -> NDArray[np.uint8]:
    steps = np.rint(array.astype(np.float32) / np.float32(grid.scale)) + grid.zero_point
    return np.asarray(np.clip(steps, 0, grid.top).astype(np.uint8))


def _floats(codes: NDArray[Any], grid: Grid) -> NDArray[np.float32]:
    steps = codes.astype(np.int32) - grid.zero_point
    return np.asarray(steps.astype(np.float32) * np.float32(grid.scale))


def _words(grid: Grid) -> str:
    return f"value = {grid.scale:.6g} * (byte - {grid.zero_point})"
