# SPDX-License-Identifier: Apache-2.0
"""Every error this package raises on purpose, and the exit status of each.

CompileError            exit 1   base; catch this one
  PassError             exit 1   a pass broke its own contract (our bug)
    AuditError          exit 1   the emitted graph does not run as it was placed
  ConfigError           exit 2   the caller asked for something impossible
  ModelError            exit 3   the input model is damaged or outside what we compile
  DataError             exit 4   the calibration or evaluation data cannot be used
  TargetMissedError     exit 5   the result misses an accuracy or latency bound
  OutputError           exit 6   a result could not be written
  ResourceError         exit 7   a memory or time limit was hit
"""

from collections.abc import Sequence
from typing import Any, ClassVar


class CompileError(Exception):
    """Base error: what failed, on which node, and what to try next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, node: str = "", hint: str = "") -> None:
        """Keep the parts apart so the CLI and tests need not parse prose."""
        super().__init__(message)
        self.message, self.node, self.hint = message, node, hint

    def __str__(self) -> str:
        """Return one line: message, then node, then hint."""
        where = f" [node {self.node}]" if self.node else ""
        line = f"{self.message}{where}" + (f"; {self.hint}" if self.hint else "")
        return " ".join(line.split())


class PassError(CompileError):
    """A pass broke its own contract: a bug in this package."""


class AuditError(PassError):
    """A layer placed int8 is not on an integer kernel, or a float one was quantized unasked."""


class ConfigError(CompileError):
    """The caller asked for something impossible."""

    exit_code = 2


class ModelError(CompileError):
    """The input model is damaged, or outside what we compile."""

    exit_code = 3


class DataError(CompileError):
    """The calibration or evaluation data cannot be used."""

    exit_code = 4


class TargetMissedError(CompileError):
    """The compiled model misses an accuracy or latency bound."""

    exit_code = 5

    def __init__(self, message: str, *, hint: str = "", front: Sequence[Any] = ()) -> None:
        """Keep what was tried: ``front`` holds a PointRecord of each placement."""
        super().__init__(message, hint=hint)
        self.front = front


class OutputError(CompileError):
    """A result could not be written."""

    exit_code = 6


class ResourceError(CompileError):
    """A memory or time limit was hit."""

    exit_code = 7
