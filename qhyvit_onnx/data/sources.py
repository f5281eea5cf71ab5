# SPDX-License-Identifier: Apache-2.0
"""Tell what kind of data the caller named, and open it as single samples."""

import os
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np

from qhyvit_onnx.data.array_files import SUFFIXES as ARRAY_SUFFIXES
from qhyvit_onnx.data.array_files import load_table, read_array_folder, read_table
from qhyvit_onnx.data.arrays import make_table
from qhyvit_onnx.data.feeds import Deployable, Kind, Origin, Raw, Request, Source
from qhyvit_onnx.data.image_files import read_bundled, read_images
from qhyvit_onnx.data.images import SUFFIXES as IMAGE_SUFFIXES
from qhyvit_onnx.data.images import files_below
from qhyvit_onnx.data.input_spec import Array, InputSpec, batch_of, single
from qhyvit_onnx.data.preprocess import load_recipe
from qhyvit_onnx.data.streams import read_stream
from qhyvit_onnx.errors import ConfigError, DataError

RANDOM = "random"
RANDOM_SAMPLES = 8
"""Drawn when the caller does not say how many."""
ACCEPTED = "give a folder of images, an image, .npy, .npz, a folder of those, or the word random"


def read(source: Source, request: Request) -> Raw:
    """Return the samples of ``source``, chosen but unchecked."""
    if isinstance(request.preprocess, str):
        load_recipe(request.preprocess)  # a bad file is told before any data is read
    if source is None:
        return read_bundled(request)
    if isinstance(source, str) and source == RANDOM:
        return _noise(request)
    if isinstance(source, (str, os.PathLike)):
        return _read_path(Path(source), request)
    if isinstance(source, Mapping):
        return read_table(make_table(source, request, "the data"), request, kind=Kind.MEMORY)
    return read_stream(source, request)


def _read_path(path: Path, request: Request) -> Raw:
    if path.is_dir():
        return _read_folder(path, request)
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no regular file", hint=ACCEPTED)
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return read_images(path.parent, [path], request)
    if suffix in ARRAY_SUFFIXES:
        table = load_table(path, request)
        return read_table(table, request, kind=Kind.ARRAYS, path=str(path))
    raise DataError(f"{path} is neither an image nor an array file", hint=ACCEPTED)


def _read_folder(folder: Path, request: Request) -> Raw:
    found = files_below(folder)
    images = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    arrays = [path for path in found if path.suffix.lower() in ARRAY_SUFFIXES]
    if images and arrays:
        raise DataError(
            f"{folder} holds {len(images)} images and {len(arrays)} array files",
            hint="keep one kind in the folder",
        )
    if images:
        return read_images(folder, images, request)
    if arrays:
        return read_array_folder(folder, arrays, request)
    raise DataError(
        f"{folder} holds no images and no .npy or .npz files, {len(found)} other files",
        hint=ACCEPTED,
    )


def _noise(request: Request) -> Raw:
    """Return seeded noise: standard normal for floats, 0 and 1 for anything else."""
    batch = batch_of(request.inputs)
    specs = tuple(single(spec, batch) for spec in request.inputs)
    free = [spec for spec in specs if None in spec.shape]
    if free:
        dims = ",".join("224" if dim is None else str(dim) for dim in free[0].shape)
        raise ConfigError(
            f"random data needs every dim of input {free[0]}",
            hint=f"give --input-shape {free[0].name}:{dims}",
        )
    count = request.samples or RANDOM_SAMPLES * batch

    def walk() -> Iterator[tuple[str, Mapping[str, Array]]]:
        for index in range(count):
            rng = np.random.default_rng([request.seed, index])
            yield f"random sample {index}", {spec.name: _draw(spec, rng) for spec in specs}

    hasher = sha256()
    for _, feed in walk():
        for array in feed.values():
            hasher.update(array.tobytes())
    origin = Origin(
        kind=Kind.RANDOM,
        taken=count,
        available=count,
        seed=request.seed,
        deployable=Deployable.FIRST_LOOK,
        sha256=hasher.hexdigest(),
        notes=(f"random data: {Deployable.FIRST_LOOK}",),
    )
    return Raw(walk, origin)


def _draw(spec: InputSpec, rng: np.random.Generator) -> Array:
    shape = tuple(dim or 0 for dim in spec.shape)
    if spec.dtype.kind == "f":
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)
