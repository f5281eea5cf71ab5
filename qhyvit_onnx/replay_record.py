# SPDX-License-Identifier: Apache-2.0
"""What the report says of the replay: a part of its schema."""

from pydantic import BaseModel, ConfigDict

from qhyvit_onnx.replay import Counted, Layer, Replay


class LayerRecord(BaseModel):
    """One integer node that is not what its reference kernel says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kernel: str
    difference: float
    counted: str
    """What ``difference`` is in: quantization steps, or units in the last place of float32."""
    cause: str

    @classmethod
    def of(cls, layer: Layer) -> "LayerRecord":
        """Return the record of one node."""
        return cls(
            name=layer.name,
            kernel=layer.kernel,
            difference=layer.difference,
            counted=str(layer.counted),
            cause=str(layer.cause),
        )


class ReplayRecord(BaseModel):
    """Every integer node of the graph onnxruntime runs, against its reference kernel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    layers: int
    """Nodes replayed."""
    largest_steps: float
    """Largest difference of nodes that write codes; quantization steps."""
    largest_ulps: float
    """Largest difference of nodes that write numbers; units in the last place of float32, at the
    largest number of the tensor."""
    differing: list[LayerRecord]
    unreplayed: dict[str, int]
    """Op types that have no reference kernel, and how many."""

    @classmethod
    def of(cls, replay: Replay | None) -> "ReplayRecord | None":
        """Return the record of a replay; None when there was none."""
        if replay is None:
            return None
        return cls(
            samples=replay.samples,
            layers=len(replay.layers),
            largest_steps=replay.largest(Counted.STEPS),
            largest_ulps=replay.largest(Counted.ULPS),
            differing=[LayerRecord.of(layer) for layer in replay.differing()],
            unreplayed=replay.unreplayed(),
        )
