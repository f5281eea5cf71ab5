# SPDX-License-Identifier: Apache-2.0
"""What published methods treat apart: tensors around softmax, norms, GELU and SiLU."""

from collections.abc import Mapping
from dataclasses import dataclass

from qhyvit_onnx.composites import find_composites
from qhyvit_onnx.graph import Graph

LOWEST = {"Gelu": -0.16997, "Silu": -0.27846}
"""Least value of each function."""

NORMS = frozenset({"LayerNormalization", "GroupNormalization", "InstanceNormalization"})


@dataclass(frozen=True, slots=True)
class Roles:
    """By name of tensor."""

    tails: Mapping[str, float]
    """What a GELU or SiLU writes, and the least value that it can have."""
    read_by_norms: frozenset[str]
    written_by_layer_norms: frozenset[str]


def roles_of(graph: Graph) -> Roles:
    """Return what there is in ``graph``, spelled out in nodes or in one."""
    composites = find_composites(graph)
    tails = {c.output.name: LOWEST[c.kind] for c in composites if c.kind in LOWEST}
    tails |= {n.outputs[0].name: LOWEST["Gelu"] for n in graph.nodes if n.op == "Gelu"}
    spelled = [c for c in composites if c.kind in {"LayerNorm", "GroupNorm1"}]
    inside = {node.name for composite in spelled for node in composite.nodes}
    norms = [node for node in graph.nodes if node.op in NORMS and node.name not in inside]
    layer_norms = [node.outputs[0] for node in norms if node.op == "LayerNormalization"]
    layer_norms += [composite.output for composite in spelled if composite.kind == "LayerNorm"]
    read = [*(node.inputs[0] for node in norms), *(composite.input for composite in spelled)]
    return Roles(
        tails,
        frozenset(tensor.name for tensor in read),
        frozenset(tensor.name for tensor in layer_norms),
    )
