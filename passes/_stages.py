# SPDX-License-Identifier: Apache-2.0
"""A model cut in pieces, so that what lies before a unit need not run again to perturb it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qhyvit_onnx.runtime import Options, Session

DELTA = "__delta"
"""Ends the name of the input that is added to a tensor."""

_STAGES = 8
"""Starting points in a model, at most: more sessions take longer to open than they save."""

_LEAST = 4
"""Tensors a stage, at least, for the same reason."""

ValueInfo: TypeAlias = onnx.ValueInfoProto
Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Stage:
    """The end of a model, from some node on, and the tensors that are perturbed there."""

    start: int
    """Position of the first node."""
    perturbed: tuple[str, ...]
    """In the order of their producers; the first is given by the first node."""
    frontier: tuple[str, ...]
    """What the stage reads of what was computed before it, inputs of the model among that."""

    def session(self, model: onnx.ModelProto, clean: Arrays, ends: Sequence[str]) -> Session:
        """Return the stage of ``model``: it takes the frontier, and what to add to tensors.

        It gives those of ``ends`` that it computes. ``clean`` tells the types of the frontier.
        """
        out = onnx.ModelProto()
        out.CopyFrom(model)
        nodes = list(out.graph.node)[self.start :]
        del out.graph.node[:], out.graph.input[:], out.graph.output[:]
        made = {name for node in nodes for name in node.output}
        for name in self.frontier:
            out.graph.input.append(_info(name, clean[name]))
        out.graph.node.extend(_perturbed(nodes, self.perturbed, out.graph))
        out.graph.output.extend(ValueInfo(name=name) for name in ends if name in made)
        return Session(out, Options(fuse_qdq=False))


def stages_of(model: onnx.ModelProto, tensors: Sequence[str]) -> list[Stage]:
    """Return stages that perturb every one of ``tensors`` once, each as late as it can begin."""
    nodes = list(model.graph.node)
    made_at = {name: index for index, node in enumerate(nodes) for name in node.output}
    ordered = sorted(tensors, key=made_at.__getitem__)
    size = max(_LEAST, -(-len(ordered) // _STAGES))
    groups = [tuple(ordered[at : at + size]) for at in range(0, len(ordered), size)]
    constants = {item.name for item in model.graph.initializer}
    inputs = {item.name for item in model.graph.input} - constants
    found = []
    for group in groups:
        start = made_at[group[0]]
        read = dict.fromkeys(name for node in nodes[start:] for name in _reads(node))
        before = [name for name in read if name in inputs or made_at.get(name, start) < start]
        found.append(Stage(start, group, tuple(before)))
    return found


def telling(model: onnx.ModelProto, wanted: Sequence[str]) -> Session:
    """Return ``model`` giving tensors of its inside as well: what stages start from."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    known = {item.name for item in (*out.graph.output, *out.graph.input)}
    new = (name for name in dict.fromkeys(wanted) if name not in known)
    out.graph.output.extend(ValueInfo(name=name) for name in new)
    return Session(out, Options(fuse_qdq=False))


def _info(name: str, value: NDArray[np.generic] | Sequence[NDArray[np.generic]]) -> ValueInfo:
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


def _perturbed(
    nodes: Sequence[onnx.NodeProto], tensors: Sequence[str], graph: onnx.GraphProto
) -> Iterator[onnx.NodeProto]:
    """Yield ``nodes`` with an Add behind every producer of ``tensors``; zero unless it is fed."""
    for node in nodes:
        added = [name for name in node.output if name in tensors]
        node.output[:] = [f"{name}__clean" if name in added else name for name in node.output]
        yield node
        for name in added:
            delta = f"{name}{DELTA}"
            graph.input.append(helper.make_tensor_value_info(delta, onnx.TensorProto.FLOAT, None))
            graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), delta))
            yield helper.make_node("Add", [f"{name}__clean", delta], [name], name=f"{delta}/add")
