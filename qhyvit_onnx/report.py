# SPDX-License-Identifier: Apache-2.0
"""What a compilation reports: one versioned schema, from which tables and JSON are made."""

from collections import Counter
from dataclasses import asdict

from pydantic import BaseModel, ConfigDict

from qhyvit_onnx import __version__
from qhyvit_onnx.composites import find_composites
from qhyvit_onnx.costs.table import Target
from qhyvit_onnx.facts import (
    BRIDGES,
    EMITTED,
    FOLDS,
    GRIDS,
    INTERFACE,
    PLACEMENT,
    PREDICTION,
    REGIONS,
    SENSITIVITY,
    STATS,
    UNITS,
    VERIFICATION,
)
from qhyvit_onnx.graph import MOVEMENT
from qhyvit_onnx.grid import Cure
from qhyvit_onnx.pipeline import Step
from qhyvit_onnx.placements import Made
from qhyvit_onnx.replay_record import ReplayRecord
from qhyvit_onnx.runtime import version as runtime_version
from qhyvit_onnx.speed_records import Latency, PointRecord, PredictionRecord
from qhyvit_onnx.state import State

SCHEMA = 1
"""Version of this schema: raised when a field is renamed, removed or changes its meaning, not
when one is added."""


class _Record(BaseModel):
    """A frozen part of the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PassRecord(_Record):
    """One pass."""

    name: str
    note: str
    changed: int
    seconds: float
    peak_mb: float
    misses: dict[str, int]


class UnitRecord(_Record):
    """One fusion unit: where it runs and why."""

    name: str
    kind: str
    int8: bool
    kernel: str
    """Integer kernel seen in the graph onnxruntime runs; empty for float."""
    reason: str
    """Why it stays float; empty for int8."""
    noise: float | None
    """Output error over output energy when this unit alone is quantized; None when not measured."""


class RegionRecord(_Record):
    """One stretch of the network that mixes on one side at one size."""

    side: str
    size: str
    nodes: list[str]


class BridgeRecord(_Record):
    """The crossings between convolution and transformer of one direction at one size."""

    direction: str
    size: str
    why: str
    nodes: list[str]
    inputs: list[str]
    outputs: list[str]


class CureRecord(_Record):
    """One tensor whose range excludes zero."""

    tensor: str
    low: float
    high: float
    cure: str


class FoldRecord(_Record):
    """What range folding did to one class: tensors whose channels are rewritten together."""

    tensors: list[str]
    cure: str
    """``off``, ``scale``, ``shift`` or ``both``."""
    error_before: float
    error_after: float
    """Predicted rounding error of what reads the class, each relative to its signal, summed."""


class OutputRecord(_Record):
    """One output, float model against emitted model."""

    name: str
    sqnr_db: float
    cosine: float
    agreement: float
    samples: int


class DataRecord(_Record):
    """The calibration data."""

    kind: str
    path: str
    samples: int
    recipe: str
    deployable: bool
    sha256: str
    notes: list[str]


class Report(_Record):
    """Everything one compilation has to say."""

    schema_version: int
    tool_version: str
    onnxruntime_version: str
    target: str
    target_summary: str
    precision: str
    recipe: str = "qhv"
    """How grids were searched."""
    data: DataRecord
    passes: list[PassRecord]
    units: list[UnitRecord]
    float_nodes: dict[str, int]
    """Op types that are in no unit, and how many: they have no integer kernel worth using."""
    regions: list[RegionRecord] = []
    bridges: list[BridgeRecord]
    folds: list[FoldRecord]
    one_sided: list[CureRecord]
    outputs: list[OutputRecord]
    held_back: bool
    """Whether ``outputs`` was measured on samples that calibration did not see."""
    arithmetic: str
    latency: Latency | None
    prediction: PredictionRecord | None = None
    """By the cost table of the target; None in reports of earlier versions."""
    interface: dict[str, str] = {}
    """By input and output, what it is; those only that are not as in the float model."""
    front: list[PointRecord] = []
    """Placements that were tried for an accuracy bound, the fastest first; the last was taken."""
    outrun: Latency | None = None
    """What int8 took, if float was measured to be faster and is what was emitted."""
    replay: ReplayRecord | None = None
    """None when it was not asked for."""
    bytes_before: int
    bytes_after: int

    @property
    def int8_units(self) -> int:
        """How many units run int8."""
        return sum(unit.int8 for unit in self.units)


def make_report(made: Made, target: Target) -> Report:
    """Gather the facts of a finished compilation."""
    state = made.state
    verification = state.get(VERIFICATION)
    return Report(
        schema_version=SCHEMA,
        tool_version=__version__,
        onnxruntime_version=runtime_version(),
        target=target.name,
        target_summary=target.summary,
        precision=state.config.precision,
        recipe=state.config.recipe,
        data=_data(state),
        passes=[_pass(step) for step in made.steps],
        units=_units(state),
        float_nodes=_float_nodes(state),
        regions=[RegionRecord.model_validate(asdict(region)) for region in state.get(REGIONS)],
        bridges=[BridgeRecord.model_validate(asdict(bridge)) for bridge in state.get(BRIDGES)],
        folds=[
            FoldRecord(
                tensors=list(fold.tensors),
                cure=fold.cure,
                error_before=fold.before,
                error_after=fold.after,
            )
            for fold in state.get(FOLDS)
        ],
        one_sided=_cures(state),
        outputs=_outputs(state),
        held_back=verification.held_back,
        arithmetic=verification.arithmetic,
        latency=Latency.of(verification.times),
        prediction=PredictionRecord.of(state.get(PREDICTION)),
        interface=state.get(INTERFACE).told(),
        front=made.front,
        outrun=made.outrun,
        replay=ReplayRecord.of(verification.replay),
        bytes_before=state.source.ByteSize(),
        bytes_after=state.get(EMITTED).ByteSize(),
    )


def _outputs(state: State) -> list[OutputRecord]:
    return [
        OutputRecord(
            name=name,
            sqnr_db=item.sqnr_db,
            cosine=item.cosine,
            agreement=item.agreement,
            samples=item.samples,
        )
        for name, item in state.get(VERIFICATION).closeness.items()
    ]


def _pass(step: Step) -> PassRecord:
    return PassRecord(
        name=step.name,
        note=step.outcome.note,
        changed=step.outcome.changed,
        seconds=step.seconds,
        peak_mb=step.peak_mb,
        misses=dict(step.outcome.misses),
    )


def _data(state: State) -> DataRecord:
    origin = state.calibration.origin
    return DataRecord(
        kind=str(origin.kind),
        path=origin.path,
        samples=origin.taken,
        recipe=origin.recipe,
        deployable=origin.deployable == "yes",
        sha256=origin.sha256,
        notes=list(origin.notes),
    )


def _units(state: State) -> list[UnitRecord]:
    placement, kernels = state.get(PLACEMENT), state.get(VERIFICATION).kernels
    noise = state.get(SENSITIVITY)
    return [
        UnitRecord(
            name=unit.name,
            kind=str(unit.kind),
            int8=unit.name in kernels,
            kernel=kernels.get(unit.name, ""),
            reason=placement.reasons.get(unit.name, ""),
            noise=noise.get(unit.name),
        )
        for unit in state.get(UNITS)
    ]


def _float_nodes(state: State) -> dict[str, int]:
    """Count what computes outside of units; a function spelled out in several nodes counts once."""
    seen = {node.name for unit in state.get(UNITS) for node in unit.nodes}
    kinds: Counter[str] = Counter()
    for composite in find_composites(state.graph):
        members = {node.name for node in composite.nodes}
        if not members & seen:
            kinds[composite.kind] += 1
            seen |= members
    quiet = {"QuantizeLinear", "DequantizeLinear", "Sum", *MOVEMENT}
    kinds.update(n.op for n in state.graph.nodes if n.name not in seen and n.op not in quiet)
    return dict(sorted(kinds.items()))


def _cures(state: State) -> list[CureRecord]:
    """Return the one-sided tensors that are carried as uint8, and what was done about them."""
    stats, grids = state.get(STATS), state.get(GRIDS).activations
    owners = dict.fromkeys(state.get(PLACEMENT).carried.values())
    return [
        CureRecord(
            tensor=name, low=stats[name].low, high=stats[name].high, cure=str(grids[name].cure)
        )
        for name in owners
        if name in stats and stats[name].one_sided and grids[name].cure is not Cure.NONE
    ]
