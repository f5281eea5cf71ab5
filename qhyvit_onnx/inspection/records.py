# SPDX-License-Identifier: Apache-2.0
"""What ``inspect`` finds, as plain records: the fields are the keys of its JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

SCHEMA = 2
"""Version of the JSON: raised when a field is renamed, removed or changes its meaning."""

Dims: TypeAlias = tuple[int | str, ...]
"""A shape for readers: free dims by their name, ``?`` when they have none."""


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output."""

    name: str
    dtype: str
    shape: Dims


@dataclass(frozen=True, slots=True)
class UnitView:
    """One fusion unit and where it would run on the target, by cost alone."""

    name: str
    kind: str
    verdict: str
    int8: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionView:
    """One region, and how much is done in it."""

    side: str
    size: str
    """Of the map it works on; see ``facts.Region``."""
    nodes: tuple[str, ...]
    layers: int
    """Nodes that multiply by a constant weight."""
    products: int
    """Nodes that multiply two activations as matrices."""
    macs: int | None
    """Multiply-adds of one run, of one sample if the batch is free; None when they depend on any
    other free dim."""
    shape_in: Dims | None
    """Of the largest tensor that enters it."""
    shape_out: Dims | None
    """Of the largest tensor that leaves it."""
    channels_in: int | None
    channels_out: int | None
    """Channels of these; None where it cannot be said which axis counts channels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeView:
    """One bridge: see ``facts.Bridge``."""

    direction: str
    size: str
    why: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    crosses: tuple[tuple[int, int], ...]
    """Places in ``regions``, from and to, of everything that crosses; equal for an attention
    between streams that one region holds."""
    layers: int
    macs: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NormView:
    """All norms of one kind, and where their scale and offset went. The counts sum to ``count``."""

    kind: str
    count: int
    before: int
    """Folded into the layer before."""
    after: int
    """Folded into the layers after."""
    bare: int
    """Without scale and offset from the start."""
    left: int
    reasons: Mapping[str, int]
    """Why they could not be folded: times by reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutView:
    """What became of the channel axis on every path of data movement."""

    chains: int
    permutations: int
    """Chains that move every element and lose or repeat none."""
    roles: Mapping[str, int]
    """Chains by the role of the channel axis at their end: see ``layout.roles.RoleKind``."""
    unknown: int
    """Tensors of unknown shape."""


@dataclass(frozen=True, slots=True)
class PassView:
    """One pass that was run to find all this."""

    name: str
    note: str
    misses: Mapping[str, int]
    """Near-misses by reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How much wider the widest channel of a tensor is than its median channel."""

    tensor: str
    region: int | None
    """Place in ``regions`` of what computes it."""
    channels: int
    before: float
    after: float
    """Once range folding has rewritten the channels."""
    cure: str
    """What was done to its class: ``off``, ``scale``, ``shift``, ``both``; ``none`` when no layer
    around it can take anything over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneSided:
    """A tensor whose range excludes zero, and what is done so that its zero point fits."""

    tensor: str
    region: int | None
    low: float
    high: float
    cure: str
    """See ``grid.Cure``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What calibration data shows."""

    data: str
    """Where it comes from."""
    samples: int
    spreads: tuple[Spread, ...]
    """Tensors that get a grid, widest first."""
    unwatched: int
    """Tensors that get a grid, but of which calibration watched another axis than the channels."""
    one_sided: tuple[OneSided, ...]
    """Tensors that get a grid, those first that would lose most levels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Everything ``inspect`` has to say. The fields are the keys of its JSON."""

    schema_version: int
    path: str
    file_bytes: int
    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    parameters: int
    nodes: int
    nodes_normalised: int
    quantized: bool
    """Whether the model was quantized before: no pass is run then, and all below is empty."""
    families: Mapping[str, Mapping[str, int]]
    target: str
    units: tuple[UnitView, ...] = ()
    norms: tuple[NormView, ...] = ()
    layout: LayoutView | None = None
    macs: int | None = None
    """Multiply-adds of the whole graph, as in ``RegionView``."""
    regions: tuple[RegionView, ...] = ()
    bridges: tuple[BridgeView, ...] = ()
    flows: tuple[tuple[int, int], ...] = ()
    """Places in ``regions``, from and to, wherever a tensor of one is read in another."""
    passes: tuple[PassView, ...] = ()
    observed: Observed | None = None
    """None without calibration data."""
