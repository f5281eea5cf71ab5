# SPDX-License-Identifier: Apache-2.0
"""What the report says of speed: measured here, predicted for the target, tried on the way."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from qhyvit_onnx.facts import Paired, Prediction


class Times(BaseModel):
    """Time of one run on this machine, both models in turn, in the median."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    float_ms: float
    int8_ms: float

    @property
    def ratio(self) -> float:
        """Quantized over float: below 1 is faster."""
        return self.int8_ms / self.float_ms


class Latency(Times):
    """Process CPU time of one run, one thread."""

    two_threads: Times | None = None
    """Elapsed time with two threads; None where there is one core, and in earlier reports."""

    @classmethod
    def of(cls, times: Mapping[int, Paired]) -> "Latency | None":
        """Return the times by threads as a record; None if nothing was timed."""
        made = {
            threads: {"float_ms": paired.float_ms, "int8_ms": paired.int8_ms}
            for threads, paired in times.items()
        }
        return cls(**made[1], two_threads=Times(**made[2]) if 2 in made else None) if made else None


class PointRecord(BaseModel):
    """One placement of a sweep: how fast, how accurate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float
    """Of the cost that int8 saves, at most so much was given away for accuracy."""
    int8_units: int
    units: int
    predicted_ratio: float
    """Emitted over float: below 1 is faster."""
    drop: float
    """Points of top-1, or without labels of decisions, that the emitted model lost."""
    labelled: bool
    holds: bool
    """Whether that is within the bound."""
    seconds: float


class PredictionRecord(BaseModel):
    """Predicted cost of one run, one thread, on one sample of the calibration data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: str
    """``ns`` of CPU time, or ``instructions``."""
    in_float: float
    full: float
    """With everything on integer kernels that has one."""
    placed: float
    """As emitted."""

    @classmethod
    def of(cls, found: Prediction) -> "PredictionRecord":
        """Return ``found`` as a record."""
        return cls(unit=found.unit, in_float=found.in_float, full=found.full, placed=found.placed)

    @property
    def ratio(self) -> float:
        """Emitted over float: below 1 is faster."""
        return self.placed / self.in_float if self.in_float else 1.0

    def shown(self, cost: float) -> str:
        """Return ``cost`` for a reader: milliseconds, or millions of instructions."""
        return f"{cost / 1e6:.2f} ms" if self.unit == "ns" else f"{cost / 1e6:.1f} M"
