# SPDX-License-Identifier: Apache-2.0
"""What ``qhv-onnx inspect`` prints: an Inspection as tables."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from qhyvit_onnx.inspection import Inspection, Observed, Port, RegionView
from qhyvit_onnx.tables import filled, labelled, megabytes, show
from qhyvit_onnx.work import shown_work

LISTED = 10
"""Tensors shown of each kind; the JSON has them all."""

CURES = (
    "off: folding is not worth it; none: no layer around can take anything over; cover: widened to "
    "zero; symmetric: zero in the middle"
)
"""What the words in the column of cures mean, where they are not plain."""


def print_overview(
    found: Inspection, *, verbose: bool = False, drawing: Path | None = None
) -> None:
    """Print everything on stdout; ``verbose`` adds every unit and every near-miss."""
    blocks: list[RenderableType] = [labelled(_facts(found)), _families(found)]
    if found.quantized:
        blocks.append(labelled([("note", "quantized already: compile takes the float model")]))
    else:
        blocks += [_kinds(found), *_structure(found), *_trouble(found.observed)]
        blocks += [_units(found), _misses(found)] if verbose else []
    if drawing:
        blocks.append(labelled([("drawn", drawing)]))
    show(blocks)


def _facts(found: Inspection) -> Iterator[tuple[str, str]]:
    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    producer = f", written by {found.producer}" if found.producer else ""
    yield "model", f"{found.path}, {megabytes(found.file_bytes)}"
    yield "format", f"IR {found.ir_version}, opset {opsets}{producer}"
    yield from (("input", _described(port)) for port in found.inputs)
    yield from (("output", _described(port)) for port in found.outputs)
    yield "weights", f"{found.parameters:,} parameters"
    after = "" if found.quantized else f", {found.nodes_normalised} after normalise"
    yield "nodes", f"{found.nodes}{after}"
    if not found.quantized:
        open_ = "unknown: free dims, give --input-shape" if found.macs is None else ""
        yield "work", open_ or f"{shown_work(found.macs)} multiply-adds in one run"


def _described(port: Port) -> str:
    """Return ``x float [N*, 3, 32, 32]``: a star marks a free dim."""
    dims = (str(dim) if isinstance(dim, int) else f"{dim}*" for dim in port.shape)
    free = any(not isinstance(dim, int) for dim in port.shape)
    return f"{port.name} {port.dtype} [{', '.join(dims)}]" + ("   (* free)" if free else "")


def _families(found: Inspection) -> Table:
    rows = ((name, _counted(ops)) for name, ops in found.families.items())
    return filled(("family!", "ops"), rows)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _kinds(found: Inspection) -> Table:
    kinds = Counter((unit.kind, unit.verdict) for unit in found.units)
    rows = [(kind, count, verdict) for (kind, verdict), count in kinds.items()]
    return filled(("unit!", "count>", f"on {found.target}"), rows)


def _structure(found: Inspection) -> Iterator[RenderableType]:
    """Yield norms, layout, regions and bridges."""
    if found.norms:
        headers = ("norm!", "count>", "in layer before>", "in layers after>", "left>", "why left")
        rows = [
            (n.kind, n.count, n.before or "", n.after or "", n.left or "", _reasons(n.reasons))
            for n in found.norms
        ]
        yield filled(headers, rows)
    if found.layout:
        layout = found.layout
        told = f"{layout.chains} chains, {layout.permutations} of them permutations"
        roles = _counted(layout.roles)
        shapes = f"{layout.unknown} unknown" if layout.unknown else "all known"
        yield labelled([("movement", told), ("channel axis", roles or "-"), ("shapes", shapes)])
    if found.regions:
        yield _regions(found)
    yield _bridges(found) if found.bridges else labelled([("bridges", "none")])


def _reasons(reasons: Mapping[str, int]) -> str:
    return "; ".join(f"{reason} ({count})" for reason, count in reasons.items())


def _regions(found: Inspection) -> Table:
    headers = ("#>", "region!", "size!", "channels!", "layers>", "products>", "nodes>", "MACs>")
    rows = [
        (at, region.side, region.size, _channels(region), region.layers or "",
         region.products or "", len(region.nodes), _share(region.macs, found.macs))
        for at, region in enumerate(found.regions, 1)
    ]  # fmt: skip
    return filled(headers, rows)


def _channels(region: RegionView) -> str:
    ends = (region.channels_in, region.channels_out)
    return " -> ".join("?" if end is None else str(end) for end in ends)


def _share(macs: int | None, total: int | None) -> str:
    share = f" {macs / total:4.0%}" if macs and total else ""
    return f"{shown_work(macs)}{share}"


def _bridges(found: Inspection) -> Table:
    rows = []
    for at, bridge in enumerate(found.bridges, 1):
        crosses = ", ".join(
            f"within {a + 1}" if a == b else f"{a + 1} -> {b + 1}" for a, b in bridge.crosses
        )
        what = bridge.why.removeprefix(f"{bridge.size}: ")
        work = shown_work(bridge.macs)
        rows.append((f"B{at}", bridge.direction, bridge.size, crosses, bridge.layers, work, what))
    headers = ("bridge!", "way!", "size!", "regions", "layers>", "MACs>", "what crosses")
    return filled(headers, rows)


def _trouble(seen: Observed | None) -> Iterator[RenderableType]:
    """Yield the tensors that one grid does not suit."""
    if seen is None:
        yield labelled([("channels", "spread and cures need --calib DATA")])
        return
    yield labelled([("data", f"{seen.samples} samples, {seen.data}")])
    if seen.spreads:
        yield _spreads(seen)
    if seen.one_sided:
        yield _one_sided(seen)
    yield labelled(_notes(seen))


def _spreads(seen: Observed) -> Table:
    headers = ("spread>", "folded>", "channels>", "region>", "cure!", "widest tensors")
    rows = (
        (f"{s.before:.1f}", f"{s.after:.1f}", s.channels, _place(s.region), s.cure, s.tensor)
        for s in seen.spreads[:LISTED]
    )
    return filled(headers, rows)


def _one_sided(seen: Observed) -> Table:
    rows = (
        (f"{o.low:.4g}", f"{o.high:.4g}", _place(o.region), o.cure, o.tensor)
        for o in seen.one_sided[:LISTED]
    )
    return filled(("low>", "high>", "region>", "cure!", "one-sided tensors"), rows)


def _notes(seen: Observed) -> Iterator[tuple[str, str]]:
    more = len(seen.one_sided) - LISTED
    if not seen.one_sided:
        yield "one-sided", "no tensor that gets a grid has a range without zero"
    elif more > 0:
        yield "one-sided", f"{more} more, which lose fewer levels, in --json"
    if seen.unwatched:
        told = f"{seen.unwatched} more tensors were watched along another axis than their channels"
        yield "spread", told
    yield "cures", CURES


def _place(region: int | None) -> str:
    return "" if region is None else str(region + 1)


def _units(found: Inspection) -> Table:
    rows = ((unit.kind, "int8" if unit.int8 else "float", unit.name) for unit in found.units)
    return filled(("unit!", "at best!", "node"), rows)


def _misses(found: Inspection) -> RenderableType:
    """Return what nearly matched, by pass."""
    rows = [
        (item.name, count, reason) for item in found.passes for reason, count in item.misses.items()
    ]
    if not rows:
        return labelled([("near-misses", "none in any pass")])
    return filled(("pass!", "near-misses>", "reason"), rows)
