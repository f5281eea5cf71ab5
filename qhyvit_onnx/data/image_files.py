# SPDX-License-Identifier: Apache-2.0
"""Image files as samples: hashed when opened, decoded one by one while walking."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import file_digest, sha256
from importlib.resources import files
from pathlib import Path

from qhyvit_onnx.data.feeds import Deployable, Kind, Origin, Raw, Request
from qhyvit_onnx.data.image_input import ImageInput, image_input
from qhyvit_onnx.data.images import class_labels
from qhyvit_onnx.data.input_spec import Array
from qhyvit_onnx.errors import DataError


def read_images(root: Path, paths: Sequence[Path], request: Request) -> Raw:
    """Return the image files ``paths``, all below ``root``, as samples."""
    target = _target(request)
    picks = request.picks(len(paths))
    chosen = [paths[pick] for pick in picks]
    labels = class_labels(paths)

    def walk() -> Iterator[tuple[str, Mapping[str, Array]]]:
        for path in chosen:
            yield str(path), {target.spec.name: target.read(path, str(path))}

    told = "" if request.preprocess else f"no --preprocess was given, so it is {target.describe()}"
    origin = Origin(
        kind=Kind.IMAGES,
        path=str(root if len(paths) > 1 else paths[0]),
        taken=len(chosen),
        available=len(paths),
        seed=request.seed,
        sha256=_fingerprint(root, chosen),
        recipe=target.describe(),
        notes=(told,) if told else (),
    )
    return Raw(walk, origin, tuple(labels[pick] for pick in picks) if labels else None)


def read_bundled(request: Request) -> Raw:
    """Return the images that ship with this package: good for a first look only."""
    folder = Path(str(files("qhyvit_onnx"))) / "assets" / "natural"
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise DataError(
            "the bundled images are missing from this installation",
            hint="give a folder of your own images",
        )
    raw = read_images(folder, paths, request)
    origin = replace(
        raw.origin,
        kind=Kind.BUNDLED,
        path="",
        deployable=Deployable.FIRST_LOOK,
        notes=(*raw.origin.notes, f"bundled images: {Deployable.FIRST_LOOK}"),
    )
    return replace(raw, origin=origin)


def _target(request: Request) -> ImageInput:
    """Return the one input as an image input; DataError when the model has several."""
    if len(request.inputs) != 1:
        names = ", ".join(spec.name for spec in request.inputs)
        raise DataError(
            f"images can feed one input, the model has {len(request.inputs)}: {names}",
            hint="give an .npz with the input names as keys",
        )
    return image_input(request.inputs[0], request.preprocess)


def _fingerprint(root: Path, paths: Sequence[Path]) -> str:
    """Return the SHA-256 of names (relative to ``root``) and contents."""
    whole = sha256()
    for path in paths:
        try:
            with path.open("rb") as stream:
                content = file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"cannot read image {path}: {error.strerror}") from error
        name = path.relative_to(root).as_posix()
        whole.update(f"{content} {name}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()
