# SPDX-License-Identifier: Apache-2.0
"""Write results whole or not at all, and find out before long work that they can be written."""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, TypeAlias

import onnx

from qhyvit_onnx.errors import ConfigError, OutputError

Writer: TypeAlias = Callable[[BinaryIO], object]
"""Writes the whole content into an open file."""

PROTOBUF_LIMIT = (1 << 31) - 1
"""A protobuf message cannot be larger, in bytes."""


class Overwrite(StrEnum):
    """What to do with a file that is there already."""

    REFUSE = "refuse"
    REPLACE = "replace"


def check_output(
    path: str | Path,
    overwrite: Overwrite = Overwrite.REFUSE,
    *,
    inputs: Sequence[str | Path] = (),
) -> Path:
    """Return ``path`` when a file can be written there; call this before long work.

    Error:
        ConfigError when it is a folder, one of ``inputs``, or exists and may not be replaced;
        OutputError when its folder is missing or cannot be written.
    """
    path = Path(path)
    _check_folder(path)
    if path.is_dir():
        raise ConfigError(f"output {path} is a folder", hint="name a file in it")
    if any(_same(path, Path(other)) for other in inputs):
        raise ConfigError(f"output {path} is also an input", hint="name another file with -o")
    if path.exists() and not path.is_file():
        raise ConfigError(f"output {path} is no regular file", hint="name another file with -o")
    if path.exists() and overwrite is Overwrite.REFUSE:
        raise ConfigError(f"output {path} exists", hint="give --overwrite to replace it")
    with _failing_on(path):  # asking for permissions would lie to root, and on read-only mounts
        temporary = _temporary(path)
        _open_new(temporary).close()
        temporary.unlink()
    return path


def save_atomically(path: str | Path, content: bytes | Writer) -> None:
    """Put ``content`` at ``path``: complete and on the disk, or ``path`` is left as it was.

    Error:
        OutputError with the system's reason. Whatever is raised, no temporary file stays.
    """
    path = Path(path)
    _check_folder(path)
    temporary = _temporary(path)
    with _failing_on(path):
        stream = _open_new(temporary)
        try:
            with stream:
                if callable(content):
                    content(stream)
                else:
                    stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def save_model(path: str | Path, model: onnx.ModelProto) -> None:
    """Save ``model`` atomically; the same model gives the same bytes."""
    save_atomically(path, model_bytes(model))


def model_bytes(model: onnx.ModelProto) -> bytes:
    """Return ``model`` serialised; OutputError when it is larger than one file may be."""
    size = model.ByteSize()
    if not 0 <= size <= PROTOBUF_LIMIT:
        raise OutputError(
            "the model is larger than 2 GiB, which one ONNX file cannot hold",
            hint="models of that size are not supported yet",
        )
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _check_folder(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        state = "is no folder" if folder.exists() else "does not exist"
        raise OutputError(f"cannot write {path}: {folder} {state}", hint="make the folder first")


def _same(path: Path, other: Path) -> bool:
    with suppress(OSError):
        return path.samefile(other)
    return path.absolute() == other.absolute()


def _temporary(path: Path) -> Path:
    """Return a fresh name in the folder of ``path``, so that replacing stays on one disk."""
    return path.parent / f".qhv-{secrets.token_hex(8)}.tmp"


def _open_new(path: Path) -> BinaryIO:
    """Open a file that must not exist yet, with the permissions any new file gets."""
    return path.open("xb")


@contextmanager
def _failing_on(path: Path) -> Iterator[None]:
    """Turn the system's refusal into an OutputError that says which file and why."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write {path}: {reason}", hint="check free space and permissions"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make the new name durable where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
