# SPDX-License-Identifier: Apache-2.0
"""Read a model or say in one line what is wrong with it; tell its inputs; write results."""

import re
from pathlib import Path

import onnx
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_model

from qhyvit_onnx.data.input_spec import InputSpec
from qhyvit_onnx.errors import ConfigError, ModelError
from qhyvit_onnx.model_checks import check_structure, check_values
from qhyvit_onnx.output import (
    PROTOBUF_LIMIT,
    Overwrite,
    check_output,
    model_bytes,
    save_atomically,
    save_model,
)

__all__ = [
    "Overwrite",
    "check_model",
    "check_output",
    "input_specs",
    "load_model",
    "model_bytes",
    "save_atomically",
    "save_model",
]

MAGIC = (
    (0, b"PK\x03\x04", "a zip archive (a PyTorch file is one too)"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (4, b"ORTM", "an .ort file"),
    (4, b"TFL3", "a TFLite file"),
)
"""(offset, bytes, what the file is)."""

LINE = 300
"""Longest message taken over from the checker, in characters."""


def load_model(path: str | Path) -> onnx.ModelProto:
    """Return the model at ``path``, external data included, checked.

    Error:
        ConfigError when there is no such file; ModelError for everything that is wrong with it.
    """
    path = Path(path)
    _check_file(path)
    try:
        model = _parse(path)
        check_structure(model)
        _run_checker(path)
        _load_external_data(model, path)
        check_values(model)
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", node=error.node, hint=error.hint) from error
    return model


def load_compiled(path: str | Path) -> onnx.ModelProto:
    """Return the quantized model at ``path``.

    Error:
        ConfigError when there is no such file; ModelError when it is no ONNX model.
    """
    path = Path(path)
    _check_file(path)
    try:
        model = _parse(path)
        _run_checker(path)
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", node=error.node, hint=error.hint) from error
    return model


def check_model(model: onnx.ModelProto) -> None:
    """Check a model that is in memory as ``load_model`` checks a file; ModelError when it fails."""
    check_structure(model)
    _run_checker(model)
    check_values(model)


def _check_file(path: Path) -> None:
    """Refuse what is plainly no model, by its kind, size and first bytes."""
    if not path.exists():
        raise ConfigError(f"model {path} does not exist")
    if path.is_dir():
        raise ModelError(f"{path} is a folder", hint="name the .onnx file in it")
    if not path.is_file():
        raise ModelError(f"{path} is no regular file")
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if size == 0:
        raise ModelError(f"{path} is empty", hint="export or copy it again")
    if size > PROTOBUF_LIMIT:
        raise ModelError(f"{path} is larger than 2 GiB", hint="save the model with external data")
    if kind := _kind(head):
        raise ModelError(f"{path} is {kind}, not an ONNX model", hint="give the .onnx file")


def _parse(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load_model(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"the file cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf's own error type carries no stubs
        raise ModelError(
            "the file is not an ONNX model, or is cut short", hint="export or copy it again"
        ) from error


def _kind(head: bytes) -> str:
    """Return what the first bytes say the file is, empty when it may be ONNX."""
    for offset, mark, kind in MAGIC:
        if head[offset:].startswith(mark):
            return kind
    text = head.isascii() and all(c.isprintable() or c.isspace() for c in head.decode("ascii"))
    return "a text file" if text else ""


def _run_checker(model: Path | onnx.ModelProto) -> None:
    """Run the full checker; on a path it makes no second copy of the weights in Python."""
    try:
        target = model if isinstance(model, onnx.ModelProto) else str(model)
        onnx.checker.check_model(target, full_check=True)
    except Exception as error:  # the checker raises several unrelated types
        text = " ".join(str(error).split("==> Context")[0].split())
        text = re.sub(r"\[ShapeInferenceError\] |Inference error\(s\): ", "", text)
        node = re.search(r"[Nn]ame: (\S+) OpType", str(error))
        raise ModelError(
            f"the model is not valid ONNX: {text[:LINE]}",
            node=node.group(1) if node else "",
            hint="export it again",
        ) from error


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    try:
        load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # ValidationError, ValueError or OSError, by kind of damage
        text = " ".join(str(error).split())
        raise ModelError(
            f"its external data cannot be read: {text[:LINE]}",
            hint="keep the data file beside the model, under its own name",
        ) from error


def input_specs(model: onnx.ModelProto) -> list[InputSpec]:
    """Return what the caller of ``model`` must feed; initializers that are also inputs are not.

    Error:
        ModelError for an input that is no tensor of numbers.
    """
    given = {tensor.name for tensor in model.graph.initializer}
    return [_spec(info) for info in model.graph.input if info.name not in given]


def _spec(info: onnx.ValueInfoProto) -> InputSpec:
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or tensor.elem_type in (
        TensorProto.UNDEFINED,
        TensorProto.STRING,
    ):
        kind = info.type.WhichOneof("value") or "untyped"
        kind = "string tensor" if kind == "tensor_type" else kind.removesuffix("_type")
        raise ModelError(f"input {info.name} is a {kind}", hint="inputs must be tensors of numbers")
    dims = tensor.shape.dim
    shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in dims)
    return InputSpec(info.name, shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
