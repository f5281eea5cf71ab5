# SPDX-License-Identifier: Apache-2.0
"""A model cut in sections, so that a perturbed tensor needs a run of what follows it only."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from qhyvit_onnx.passes._twins import Probe
from qhyvit_onnx.runtime import Arrays

_SECTIONS = 12
"""Of a model, at most: what every run of one costs beside its arithmetic, more would not save."""

_NEVER = 1 << 60
"""Tensors that are said to cross where no cut may be."""


@dataclass(frozen=True, slots=True)
class Section:
    """Nodes that follow one another in a model, and the units that are perturbed among them."""

    nodes: Sequence[onnx.NodeProto]
    probes: Sequence[Probe]
    """In the order of what makes their outputs."""
    reads: tuple[str, ...]
    """What it reads of what was computed before it, inputs of the model among that."""
    writes: tuple[str, ...]
    """What it computes that is wanted, or read behind it."""
    alive: tuple[str, ...]
    """What hangs on the model behind it: all that is read there, and what was wanted before."""

    @property
    def perturbed(self) -> list[str]:
        """Names of the tensors that its units make."""
        return [probe.unit.output.name for probe in self.probes]

    def model(self, whole: onnx.ModelProto, clean: Arrays) -> onnx.ModelProto:
        """Return this part of the model ``whole``; ``clean`` tells the types of what it reads."""
        out = onnx.ModelProto(
            ir_version=whole.ir_version, opset_import=whole.opset_import, functions=whole.functions
        )
        out.graph.name = whole.graph.name
        read = {name for node in self.nodes for name in _reads(node)}
        out.graph.initializer.extend(x for x in whole.graph.initializer if x.name in read)
        out.graph.sparse_initializer.extend(whole.graph.sparse_initializer)
        out.graph.input.extend(_info(name, clean[name]) for name in self.reads)
        out.graph.node.extend(self.nodes)
        out.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.writes)
        return out


def sections_of(
    model: onnx.ModelProto, probes: Sequence[Probe], wanted: Collection[str]
) -> list[Section]:
    """Cut ``model`` where few tensors cross, short where much is to be done for many units.

    What is ``wanted`` is told of every run, and what it does not hang on is left out, units too. No
    cut parts a unit of ``probes``.
    """
    nodes = _needed(model.graph.node, wanted)
    constants = {item.name for item in model.graph.initializer}
    made = {item.name: -1 for item in model.graph.input if item.name not in constants}
    made |= {name: at for at, node in enumerate(nodes) for name in node.output if name}
    last = {name: at for at, node in enumerate(nodes) for name in _reads(node) if name in made}
    last |= dict.fromkeys(wanted, len(nodes))
    probes = [probe for probe in probes if probe.unit.output.name in made]
    ordered = sorted(probes, key=lambda probe: made[probe.unit.output.name])
    places = [made[probe.unit.output.name] for probe in ordered]
    crossing = np.where(_parting(nodes, probes), _NEVER, _crossing(made, last))
    found = []
    for start, stop in pairwise([0, *_cuts(places, ordered, crossing), len(nodes)]):
        part = nodes[start:stop]
        read = dict.fromkeys(name for node in part for name in _reads(node) if name in made)
        alive = tuple(name for name, at in last.items() if at >= stop > made[name])
        found.append(
            Section(
                nodes=part,
                probes=[x for x, at in zip(ordered, places, strict=True) if start <= at < stop],
                reads=tuple(name for name in read if made[name] < start),
                writes=tuple(name for name in alive if made[name] >= start),
                alive=alive,
            )
        )
    return found


def _needed(nodes: Sequence[onnx.NodeProto], wanted: Iterable[str]) -> list[onnx.NodeProto]:
    """Return those of ``nodes`` that ``wanted`` tensors hang on."""
    known, found = set(wanted), []
    for node in reversed(nodes):
        if not known.isdisjoint(node.output):
            known.update(_reads(node))
            found.append(node)
    return found[::-1]


def _cuts(places: Sequence[int], probes: Sequence[Probe], crossing: NDArray[np.int64]) -> list[int]:
    """Return where sections begin, but the first: at the narrowest place half a section around.

    ``places`` are the nodes that make the outputs of ``probes``, in order. A section of n units and
    cost c is run n times: least is done in all when sections are equal in sqrt(n c), to which a
    unit of cost c adds sqrt(c).
    """
    lengths = np.sqrt([probe.cost for probe in probes])
    passed = np.searchsorted(places, np.arange(len(crossing)))
    before = np.concatenate([[0.0], np.cumsum(lengths)])[passed]
    size = before[-1] / _SECTIONS
    found = [0]
    for wanted in range(1, _SECTIONS):
        off = np.abs(before - wanted * size)
        allowed = np.flatnonzero((2 * off < size) & (crossing < _NEVER))
        if near := [at for at in allowed if at > found[-1]]:
            found.append(int(min(near, key=lambda at: (crossing[at], off[at], at))))
    return found[1:]


def _parting(nodes: Sequence[onnx.NodeProto], probes: Iterable[Probe]) -> NDArray[np.bool_]:
    """Tell, for every node, whether a cut before it would part a unit."""
    at = {node.name: index for index, node in enumerate(nodes)}
    parting = np.zeros(len(nodes), bool)
    for probe in probes:
        found = [at[node.name] for node in probe.unit.nodes]
        parting[min(found) + 1 : max(found) + 1] = True
    return parting


def _crossing(made: Mapping[str, int], last: Mapping[str, int]) -> NDArray[np.int64]:
    """Return, for every node, how many tensors are read at it or behind and made before."""
    change = np.zeros(max(last.values(), default=0) + 2, np.int64)
    for name, at in last.items():
        change[made[name] + 1] += 1
        change[at + 1] -= 1
    return np.cumsum(change)[:-2]


def _info(
    name: str, value: NDArray[np.generic] | Sequence[NDArray[np.generic]]
) -> onnx.ValueInfoProto:
    """Return the declaration of an input that takes ``value``: an array, or a sequence of such."""
    if isinstance(value, np.ndarray):
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), None
        )
    kind = helper.np_dtype_to_tensor_dtype(value[0].dtype) if value else onnx.TensorProto.FLOAT
    return helper.make_tensor_sequence_value_info(name, kind, None)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield every name that ``node`` reads, in its subgraphs too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (item.name for item in graph.output)
            for inner in graph.node:
                yield from _reads(inner)
