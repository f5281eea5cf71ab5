# SPDX-License-Identifier: Apache-2.0
"""The index maps of one node of data movement, one for each pair of input and output."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from qhyvit_onnx.graph import Node, is_absent, is_constant
from qhyvit_onnx.layout.blocks import col2im, depth_to_space, space_to_depth
from qhyvit_onnx.layout.index_map import IndexMap
from qhyvit_onnx.layout.padding import concat, pad
from qhyvit_onnx.layout.picking import gather, slice_, split
from qhyvit_onnx.layout.site import Path, Refusal, Site
from qhyvit_onnx.layout.steps import Permute, Regroup, Repeat, Step
from qhyvit_onnx.pattern import Miss
from qhyvit_onnx.symbolic.dims import is_number
from qhyvit_onnx.symbolic.shapes import Knowledge


@dataclass(frozen=True, slots=True)
class Move:
    """What a node takes from one of its inputs to one of its outputs."""

    input: str
    output: str
    map: IndexMap


UNMAPPED: Mapping[str, str] = {
    "GatherElements": "every element has an index of its own",
    "GatherND": "indices of several axes at once",
    "ScatterElements": "every element has an index of its own",
    "ScatterND": "indices of several axes at once",
    "Compress": "how much is kept depends on the data",
    "ReverseSequence": "lengths differ from sample to sample",
}
"""Ops that move elements in ways that digits do not express."""


def moves_of(node: Node, known: Knowledge) -> tuple[Move, ...] | Miss:
    """Return the map of every (input, output) pair of a movement node.

    Returns:
        One Move a pair, constant inputs left out; a Miss with the reason when the node moves
        elements but has no map; () for a node that is no data movement.

    """
    if node.op in UNMAPPED:
        return Miss(f"{node.op}: {UNMAPPED[node.op]}", node.name)
    rule = RULES.get(node.op)
    data = node.inputs if node.op == "Concat" else node.inputs[:1]
    if rule is None or (node.domain or "") not in {"", "ai.onnx"} or all(map(is_constant, data)):
        return ()
    site = Site(node, known)
    try:
        return tuple(_move(site, path) for path in rule(site) if _is_path(node, path))
    except Refusal as reason:
        return Miss(f"{node.op}: {reason}", node.name)


def _is_path(node: Node, path: Path) -> bool:
    source, target, _ = path
    return not is_constant(node.inputs[source]) and not is_absent(node.outputs[target])


def _move(site: Site, path: Path) -> Move:
    source, target, steps = path
    found = IndexMap.of(site.source(source), steps, site.target(target))
    if len(found.form.axes) != len(found.shape):
        raise Refusal("output rank is not what the operator gives")
    return Move(site.node.inputs[source].name, site.node.outputs[target].name, found)


def _kept(_site: Site) -> Iterator[Path]:
    yield 0, 0, ()


def _dropout(site: Site) -> Iterator[Path]:
    training = site.dims(2, "training_mode")
    if training and training[0]:
        raise Refusal("training mode")
    yield 0, 0, ()


def _reshaped(site: Site) -> Iterator[Path]:
    """Reshape, Flatten, Squeeze, Unsqueeze: the order of the elements stays."""
    yield 0, 0, (Regroup(site.target()),)


def _transpose(site: Site) -> Iterator[Path]:
    rank = len(site.source())
    order = site.attr("perm") or range(rank)[::-1]
    yield 0, 0, (Permute(tuple(int(axis) for axis in order)),)


def _expand(site: Site) -> Iterator[Path]:
    target = site.target()
    source = (*(1,) * (len(target) - len(site.source())), *site.source())
    steps: list[Step] = [Regroup(source)]
    for axis, (old, new) in enumerate(zip(source, target, strict=True)):
        if old == new:
            continue
        if not (is_number(old) and old == 1):
            raise Refusal(f"whether axis {axis} grows depends on free dims")
        steps.append(Repeat(axis, new))
    yield 0, 0, tuple(steps)


def _tile(site: Site) -> Iterator[Path]:
    times = site.needed(1, "repeats")
    yield 0, 0, tuple(Repeat(axis, count) for axis, count in enumerate(times) if count != 1)


RULES: Mapping[str, Callable[[Site], Iterator[Path]]] = {
    "Identity": _kept,
    "Dropout": _dropout,
    "Reshape": _reshaped,
    "Flatten": _reshaped,
    "Squeeze": _reshaped,
    "Unsqueeze": _reshaped,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Slice": slice_,
    "Split": split,
    "Gather": gather,
    "Pad": pad,
    "Concat": concat,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Col2Im": col2im,
}
"""Ops that move elements, and how."""
