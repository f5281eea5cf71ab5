# SPDX-License-Identifier: Apache-2.0
"""Normalise: one way to write everything, so that later passes need not know exporters."""

from collections import Counter
from dataclasses import dataclass

from qhyvit_onnx.graph import is_constant, names, tidy
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes._chains import end_chains
from qhyvit_onnx.passes._constants import fold_constants, lift_constant_nodes
from qhyvit_onnx.passes._lift import inline_functions, lift
from qhyvit_onnx.passes._noops import drop_noops
from qhyvit_onnx.passes._recast import copy_channels, pool_globally
from qhyvit_onnx.passes._rewrite import unflatten_softmax, write_as_ops
from qhyvit_onnx.pattern import Miss
from qhyvit_onnx.state import State
from qhyvit_onnx.symbolic.dims import shown
from qhyvit_onnx.symbolic.shapes import Knowledge, infer

ROUNDS = 12
"""More than any graph seen needs; each round ends chains that the one before laid open."""


@dataclass(frozen=True)
class Normalise(Pass):
    """Lift the opset, fold constants and shape chains, drop no-ops, write functions as ops."""

    name = "normalise"
    summary = "opset lift, constants and shape chains folded, no-ops out, one op per function"

    def run(self, state: State) -> Outcome:
        """Edit until nothing changes, then write down the shapes that are known."""
        before = len(state.graph.nodes)
        counts: Counter[str] = Counter()
        counts["constant nodes"] += lift_constant_nodes(state.graph)
        counts["function calls inlined"] += inline_functions(state)
        counts["opset lifts"] += lift(state)
        counts["constant nodes"] += lift_constant_nodes(state.graph)
        counts["dead"] += _tidy(state)
        misses: list[Miss] = []
        for _ in range(ROUNDS):
            found, misses, known = _round(state)
            counts.update(found)
            if not found.total():
                break
        taken = names(state.graph)
        counts["widening convolutions made depthwise"] = copy_channels(state.graph, taken)
        counts["means over the map pooled"] = pool_globally(state.graph, known, taken)
        counts["dead"] += _tidy(state)
        _annotate(state, known)
        done = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()) if count)
        note = f"{before} nodes to {len(state.graph.nodes)}: {done or 'nothing to do'}"
        return Outcome(counts.total(), note, Counter(miss.reason for miss in misses))


def _round(state: State) -> tuple[Counter[str], list[Miss], Knowledge]:
    """Infer once, apply every kind of edit once; return the edits by kind."""
    graph, known, taken = state.graph, infer(state.graph), names(state.graph)
    counts: Counter[str] = Counter()
    counts["no-ops"] = drop_noops(graph, known)
    counts["shape chains ended"] = end_chains(graph, known, taken)
    tidy(graph)
    counts["constants folded"] = fold_constants(graph, known, taken)
    tidy(graph)
    counts["Softmax written as an op"] = unflatten_softmax(graph, known)
    done, misses = write_as_ops(graph, known, taken)
    counts.update({f"{kind} written as an op": number for kind, number in done.items()})
    tidy(graph)
    return counts, misses, known


def _tidy(state: State) -> int:
    """Drop dead nodes; return how many."""
    before = len(state.graph.nodes)
    tidy(state.graph)
    return before - len(state.graph.nodes)


def _annotate(state: State, known: Knowledge) -> None:
    """Write shapes on the tensors inside, in terms of the free dims of the inputs."""
    public = {id(tensor) for tensor in (*state.graph.inputs, *state.graph.outputs)}
    for tensor in state.graph.tensors().values():
        if id(tensor) in public or is_constant(tensor) or tensor.name not in known.shapes:
            continue
        tensor.shape = [shown(dim) for dim in known.shapes[tensor.name]]
