# SPDX-License-Identifier: Apache-2.0
"""Where an emitted model rounds, as places of the float graph: what a simulation has to hook."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from qhyvit_onnx.facts import Placement
from qhyvit_onnx.graph import Graph, Node, Tensor, producer
from qhyvit_onnx.passes._weights import rounds_bias
from qhyvit_onnx.units import LAYERS, Kind, Unit, moves, source_of

Key: TypeAlias = str | tuple[str, int]
"""A tensor: what all its readers see. (Node, input): what that one reader sees there."""


@dataclass(frozen=True, slots=True)
class Sites:
    """Every place where floats are rounded, with the name of what it is rounded to."""

    activations: Mapping[Key, str]
    """Place to the tensor whose grid is used there."""
    weights: Mapping[tuple[str, int], str]
    """Place to the unit whose weight is read there."""
    biases: Mapping[tuple[str, int], str]
    """Place to the unit whose bias is read there."""
    owners: Mapping[str, str]
    """Every tensor to the one whose grid it is on: where its elements come from."""
    rounded_biases: frozenset[str]
    """Units whose bias is rounded too, to steps of ``s_x * s_w``."""


def sites_of(graph: Graph, units: Sequence[Unit], placement: Placement) -> Sites:
    """Return where the model that ``insert-qdq`` writes for ``placement`` rounds.

    A tensor that an integer kernel writes is seen rounded by everyone; any other tensor by the
    integer kernels that read it, and by the movement between.
    """
    chosen = [unit for unit in units if unit.name in set(placement.int8)]
    layers = [unit for unit in chosen if unit.kind in LAYERS]
    found = _Activations(graph, chosen, placement)
    return Sites(
        activations=dict(found),
        weights={(unit.name, 1): unit.name for unit in layers},
        biases={_bias_place(unit): unit.name for unit in layers if unit.bias is not None},
        owners={name: source_of(tensor).name for name, tensor in graph.tensors().items()},
        rounded_biases=frozenset(unit.name for unit in layers if rounds_bias(unit)),
    )


class _Activations:
    """Walks the tensors that travel as codes."""

    def __init__(self, graph: Graph, chosen: Sequence[Unit], placement: Placement) -> None:
        self._tensors = graph.tensors()
        self._carried = placement.carried
        self._integer = {node.name: unit for unit in chosen for node in unit.nodes}

    def __iter__(self) -> Iterator[tuple[Key, str]]:
        for name, owner in self._carried.items():
            tensor = self._tensors[name]
            if self._from_integer(tensor):
                yield name, owner
                continue
            for node in tensor.outputs:
                if self._reads_codes(node, tensor):
                    places = (i for i, read in enumerate(node.inputs) if read is tensor)
                    yield from (((str(node.name), place), owner) for place in places)

    def _from_integer(self, tensor: Tensor) -> bool:
        node = producer(tensor)
        if node is None:
            return False
        if node.name in self._integer:
            return True
        return moves(node) and node.inputs[0].name in self._carried

    def _reads_codes(self, node: Node, tensor: Tensor) -> bool:
        unit = self._integer.get(node.name)
        if unit is not None:
            return any(tensor is read for read in (*unit.inputs, *unit.interior))
        return moves(node) and all(out.name in self._carried for out in node.outputs)


def _bias_place(unit: Unit) -> tuple[str, int]:
    node = unit.nodes[1] if unit.kind is Kind.MATMUL else unit.node
    return str(node.name), next(i for i, read in enumerate(node.inputs) if read is unit.bias)
