# SPDX-License-Identifier: Apache-2.0
"""Where scale and shift per channel can be put between layers without a change of the output.

A *site* is a tensor whose channels are written through constants (scale and offset of a norm, rows
of a layer) and read, data movement and attention's averages aside, by the input channels of layers.
Which input channel reads which channel is seen, not reasoned about: the tensor is overwritten with
the numbers of its channels, and the graph is run once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from _slots import Array, Slot, Source, layer_axes
from numpy.typing import NDArray

from qhyvit_onnx.graph import MOVEMENT, Graph, Node, Tensor, is_output
from qhyvit_onnx.pattern import Miss
from qhyvit_onnx.runtime import Session
from qhyvit_onnx.units import is_softmax, source_of

Mask = NDArray[np.bool_]
Feed = Mapping[str, Array]

CROSSED = MOVEMENT - {"MaxPool"}
"""Ops whose outputs hold elements of their first input and nothing else."""

WHOLE = 1e-3
"""How far a channel number may be from an integer: averages of equal numbers are rounded."""


@dataclass(frozen=True, slots=True, eq=False)
class Sink:
    """A layer that reads the channels."""

    node: Node
    weight: Slot
    """Along its input channels."""
    columns: NDArray[np.int64]
    """Channel that each of its input channels reads."""


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One tensor with everything that writes and reads its channels."""

    source: Source
    sinks: tuple[Sink, ...]
    scaled: Mask
    """Channels, (C,), that may take a scale: only layers read them."""
    shifted: Mask
    """Channels, (C,), that may take a shift too: no padding and no average sees them."""


@dataclass(slots=True, eq=False)
class _Reach:
    """Where the elements of one tensor go."""

    layers: list[tuple[Node, Tensor]] = field(default_factory=list)
    averages: list[tuple[Tensor, int]] = field(default_factory=list)
    """Values weighed by a softmax, and the axis that is summed over."""
    ends: list[tuple[str, Tensor]] = field(default_factory=list)
    """Readers that take no scale, by op."""


def site_at(graph: Graph, model: onnx.ModelProto, source: Source, feed: Feed) -> Site | Miss:
    """Return the site at ``source``, or why none of its channels can be scaled.

    ``model`` is ``graph`` as a model; ``feed`` is any sample, to run it once.
    """
    if is_output(graph, source.output):
        return Miss("a graph output", source.node.name)
    found = _Reach()
    _follow(graph, source.output, found)
    if not found.layers:
        return _miss(source, found, ())
    pairs = (*found.layers, *found.ends)
    wanted = {tensor.name for _, tensor in pairs} | {tensor.name for tensor, _ in found.averages}
    numbers = _numbered(model, source, feed, wanted)
    sinks = [_sink(node, numbers[tensor.name]) for node, tensor in found.layers]
    taken = tuple(sink for sink in sinks if isinstance(sink, Sink))
    blocked, fixed = _refused(source, found, numbers, sinks)
    scaled = ~blocked & _mask(source, *(sink.columns for sink in taken))
    if scaled.any():
        return Site(source, taken, scaled, scaled & ~fixed)
    return _miss(source, found, sinks)


def _miss(source: Source, found: _Reach, sinks: Sequence[Sink | Miss]) -> Miss:
    """Return everything that keeps a scale off ``source``."""
    reasons = {f"read by {op}" for op, _ in found.ends}
    reasons |= {sink.reason for sink in sinks if isinstance(sink, Miss)}
    return Miss(", ".join(sorted(reasons)) or "read by nothing", source.node.name)


def _follow(graph: Graph, tensor: Tensor, found: _Reach) -> None:
    """Note every reader of the elements of ``tensor``; Shape reads none."""
    if is_output(graph, tensor):
        found.ends.append(("a graph output", tensor))
    for node in tensor.outputs:
        first = node.inputs[0] is tensor
        if node.op in CROSSED and first:
            for out in node.outputs:
                _follow(graph, out, found)
        elif first and layer_axes(node) is not None:
            found.layers.append((node, tensor))
        elif node.op == "MatMul" and is_softmax(source_of(node.inputs[int(first)])):
            found.averages.append((tensor, -1 if first else -2))
            _follow(graph, node.outputs[0], found)
        elif node.op != "Shape":
            found.ends.append((node.op, tensor))


def _sink(node: Node, numbers: Array) -> Sink | Miss:
    """Return what each input channel of a layer reads, seen in ``numbers`` at its input."""
    if node.attrs.get("group", 1) != 1:
        return Miss("read by a layer of several groups", node.name)
    rows = np.moveaxis(numbers, 1 if node.op == "Conv" else -1, 0)
    rows = rows.reshape(len(rows), -1)
    found = np.rint(rows[:, 0])
    if np.abs(rows - found[:, None]).max() > WHOLE:
        return Miss("channels that do not reach the layer one by one", node.name)
    axes = layer_axes(node)
    assert axes is not None  # it is in ``layers``
    return Sink(node, Slot(node, 1, axes[1]), found.astype(np.int64))


def _refused(
    source: Source, found: _Reach, numbers: Mapping[str, Array], sinks: Sequence[Sink | Miss]
) -> tuple[Mask, Mask]:
    """Return the channels that may not be scaled, and those that may not be shifted."""
    blocking = [numbers[tensor.name] for _, tensor in found.ends]
    fixing = []
    for (node, tensor), sink in zip(found.layers, sinks, strict=True):
        if isinstance(sink, Miss):
            blocking.append(numbers[tensor.name])
        elif _is_padded(node):
            fixing.append(numbers[tensor.name])
    for tensor, axis in found.averages:
        met = numbers[tensor.name]
        mixed = np.ptp(met, axis=axis).max() > 0  # over channels, not over positions
        (blocking if mixed else fixing).append(met)
    return _mask(source, *blocking), _mask(source, *fixing)


def _is_padded(node: Node) -> bool:
    """Tell whether ``node`` reads zeros beside its input, which no shift reaches."""
    same = str(node.attrs.get("auto_pad", "")).startswith("SAME")
    return node.op == "Conv" and (same or any(node.attrs.get("pads", ())))


def _mask(source: Source, *numbers: Array) -> Mask:
    """Return which channels occur in ``numbers``: all of them where a number is not whole."""
    mask = np.zeros(source.gain.channels, bool)
    for array in numbers:
        found = np.rint(array)
        mask[found.astype(np.int64) if np.abs(array - found).max() < WHOLE else slice(None)] = True
    return mask


def _numbered(
    model: onnx.ModelProto, source: Source, feed: Feed, wanted: set[str]
) -> dict[str, Array]:
    """Return the tensors ``wanted`` of one run in which every channel holds its own number."""
    probe, name = onnx.ModelProto(), source.output.name
    probe.CopyFrom(model)
    nodes = list(probe.graph.node)
    at = next(index for index, node in enumerate(nodes) if name in node.output)
    nodes[at].output[:] = [f"{out}.seen" if out == name else out for out in nodes[at].output]
    numbers = np.arange(source.gain.channels, dtype=np.float32)
    numbers = numbers.reshape(-1, *(1,) * source.behind)
    probe.graph.initializer.append(onnx.numpy_helper.from_array(numbers, f"{name}.numbers"))
    shape = onnx.helper.make_node("Shape", [f"{name}.seen"], [f"{name}.shape"])
    spread = onnx.helper.make_node("Expand", [f"{name}.numbers", f"{name}.shape"], [name])
    del probe.graph.node[:]
    probe.graph.node.extend([*nodes[: at + 1], shape, spread, *nodes[at + 1 :]])
    return dict(Session(with_outputs(probe, wanted)).run(feed, sorted(wanted)))


def with_outputs(model: onnx.ModelProto, wanted: set[str]) -> onnx.ModelProto:
    """Add every tensor ``wanted`` to the outputs of ``model``; return it."""
    missing = wanted - {info.name for info in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(missing))
    return model
