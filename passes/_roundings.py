# SPDX-License-Identifier: Apache-2.0
"""What is rounded where in a simulation, grids that no kernel takes included."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from qhyvit_onnx.facts import Grids, Placement
from qhyvit_onnx.graph import Graph, Tensor, producer
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.passes._simulation import Key
from qhyvit_onnx.simulated import Simulated
from qhyvit_onnx.units import Unit, source_of

AnyGrid: TypeAlias = Grid | Simulated


def beyond_kernels(grids: Grids, placement: Placement) -> tuple[str, ...]:
    """Return the tensors, and layers, that are rounded as no integer kernel could."""
    carried = placement.carried.keys() | set(placement.carried.values())
    odd = (carried & grids.simulated.keys()) | (set(placement.int8) & grids.columns.keys())
    return tuple(sorted(odd))


def takes_integers(grids: Grids, unit: Unit) -> bool:
    """Tell whether a layer, if placed, sums integers: then its bias has their steps."""
    names = {unit.inputs[0].name, source_of(unit.inputs[0]).name}
    return unit.name not in grids.columns and not names & grids.simulated.keys()


def roundings(
    graph: Graph, places: Mapping[Key, str], chosen: Iterable[Unit], grids: Grids
) -> dict[Key, AnyGrid]:
    """Return the grid at every place; ``places`` are those of the model that would be emitted.

    A simulated grid counts channels where its tensor is computed, so there it rounds, before any
    movement. One that is for a moved tensor rounds what each unit reads, and nothing before.
    """
    tensors = graph.tensors()
    lifted = {
        source_of(tensors[name]).name
        for name in grids.simulated
        if source_of(tensors[name]).name != name
    }
    found: dict[Key, AnyGrid] = {}
    for key, owner in places.items():
        if owner in lifted:
            continue
        if owner not in grids.simulated:
            found[key] = grids.activations[owner]
        elif (place := _unmoved(graph, key, owner)) is not None:
            found[place] = grids.simulated[owner]
    return found | dict(_read(chosen, lifted, grids))


def _unmoved(graph: Graph, key: Key, owner: str) -> Key | None:
    """Return the place at which movement towards ``key`` starts; None if that is another key's."""
    if isinstance(key, str):
        return key if key == owner else None
    node = next(node for node in graph.nodes if node.name == key[0])
    tensor, place = node.inputs[key[1]], key
    while tensor.name != owner:
        mover = producer(tensor)
        assert mover is not None  # the owner lies before it
        tensor, place = mover.inputs[0], (str(mover.name), 0)
    return place


def _read(chosen: Iterable[Unit], lifted: set[str], grids: Grids) -> Iterator[tuple[Key, AnyGrid]]:
    """Yield what the units read of the tensors in ``lifted``."""
    for unit in chosen:
        for node in unit.nodes:
            for index, tensor in enumerate(node.inputs):
                if any(tensor is read for read in unit.inputs):
                    source = source_of(tensor).name
                    if source in lifted:
                        yield (str(node.name), index), _grid_of(tensor, source, grids)


def _grid_of(tensor: Tensor, source: str, grids: Grids) -> AnyGrid:
    """Return the grid for ``tensor``, else that of where it comes from."""
    for name in (tensor.name, source):
        if name in grids.simulated:
            return grids.simulated[name]
    return grids.activations[source]
