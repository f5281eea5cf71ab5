# SPDX-License-Identifier: Apache-2.0
"""FoldNorms: what norms do to each channel by constants, into the layers before or after."""

from collections import Counter
from dataclasses import dataclass, field

from qhyvit_onnx.config import Scope
from qhyvit_onnx.graph import (
    Graph,
    Node,
    Tensor,
    can_redirect,
    cancel_reshapes,
    is_constant,
    names,
    redirect,
    remove_node,
    tidy,
)
from qhyvit_onnx.kernels.norms import channels, fold_affine
from qhyvit_onnx.layout.chains import analyse
from qhyvit_onnx.passes._affine import Scaling, host_of, scaling
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes._forward import candidates, fold_forward, renamed, spell_out
from qhyvit_onnx.passes._layers import layer_of, write_layer
from qhyvit_onnx.passes._readers import Moves
from qhyvit_onnx.pattern import Miss
from qhyvit_onnx.state import State


@dataclass(frozen=True)
class FoldNorms(Pass):
    """Fold each scale and offset into the layer before it, else into all layers after it."""

    scope: Scope = Scope.ALL

    name = "fold-norms"
    summary = "BatchNormalization, scale and offset of norms, layer scale into linear layers"

    def run(self, state: State) -> Outcome:
        """Fold in the order of the graph, so that a chain of scales ends in one layer."""
        graph, taken, tally = state.graph, names(state.graph), _Tally()
        tally.norms = sum(node.op == "BatchNormalization" for node in graph.nodes)
        moves = _fold_backward(graph, analyse(graph).moves, taken, tally)
        if self.scope is not Scope.OFF:
            _fold_forward(graph, moves, taken, tally)
        if tally.changed:
            cancel_reshapes(graph, _same_shape)
        tidy(graph)
        return Outcome(tally.changed, tally.note(), tally.misses())


@dataclass
class _Tally:
    """What was folded, by op, and what was not, by reason."""

    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    spelled: int = 0
    norms: int = 0
    refused: dict[str, list[str]] = field(default_factory=dict)
    """Why a norm was not folded, by its name: into the layer before, into those after."""

    @property
    def changed(self) -> int:
        return self.before.total() + self.after.total() + self.spelled

    def refuse(self, node: Node, miss: Miss) -> None:
        """Note a miss; a Mul or Add that stays is where its author put it."""
        if node.op in ("BatchNormalization", "LayerNormalization"):
            self.refused.setdefault(node.name, []).append(f"{node.op}: {miss.reason}")

    def misses(self) -> Counter[str]:
        return Counter(reason for reasons in self.refused.values() for reason in reasons)

    def note(self) -> str:
        name = "BatchNormalization"
        done = self.before[name] + self.after[name]
        layer_norms = self.after["LayerNormalization"]
        others = self.before.total() + self.after.total() - done - layer_norms
        note = f"folded {done} of {self.norms} {name}, {layer_norms} LayerNormalization"
        note += f", {others} constant scales and offsets"
        return note + (f"; {self.spelled} {name} left as Mul and Add" if self.spelled else "")


def _fold_backward(graph: Graph, moves: Moves, taken: set[str], tally: _Tally) -> Moves:
    """Fold every scaling into the one layer before it; return the movement as it is then."""
    for node in list(graph.nodes):
        found = scaling(node)
        if not isinstance(found, Scaling):
            result: Tensor | Miss | None = found
        else:
            joined = (found.input.name, node.outputs[0].name)
            result = _fold(graph, found, moves, taken)
        if isinstance(result, Miss):
            tally.refuse(node, result)
        elif result is not None:
            tally.before[node.op] += 1
            moves = renamed(moves, joined, result.name)
    return moves


def _fold_forward(graph: Graph, moves: Moves, taken: set[str], tally: _Tally) -> None:
    """Fold what is left into the layers after it; spell a BatchNormalization out if that fails."""
    for found in candidates(graph):
        op, out = found.node.op, found.node.outputs[0]
        miss = fold_forward(graph, found, moves, taken)
        if miss is None:
            tally.after[op] += 1
            tally.refused.pop(found.node.name, None)  # the layer before did not, those after did
            if not found.node.outputs:  # it was taken out: whoever read it reads its input
                moves = renamed(moves, (out.name,), found.input.name)
            continue
        tally.refuse(found.node, miss)
        if op == "BatchNormalization" and out.shape is not None:
            spell_out(graph, found, taken)
            tally.spelled += 1


def _same_shape(first: Tensor, second: Tensor) -> bool:
    """Tell whether two tensors surely have the same shape."""
    shapes = first.shape, second.shape
    return None not in shapes and shapes[0] == shapes[1] and None not in shapes[0]


def _fold(graph: Graph, found: Scaling, moves: Moves, taken: set[str]) -> Tensor | Miss | None:
    """Fold one scaling and return what its readers read now.

    None for a bias that is where it belongs already.
    """
    host = host_of(graph, found, moves)
    if isinstance(host, Miss):
        return host
    if host.node.op == "MatMul" and found.node.op == "Add" and host.bias_node is None:
        return None
    layer = layer_of(host)
    if isinstance(layer, Miss):
        return layer
    size = max(found.affine.gain.size, found.affine.offset.size)
    if size not in (1, channels(layer)):
        return Miss(f"{size} channels on a layer of {channels(layer)}", found.node.name)
    if not can_redirect(graph, found.node.outputs[0], found.input):
        return Miss("a graph output on both sides", found.node.name)
    write_layer(graph, host, layer, fold_affine(layer, found.affine), taken)
    tensor = found.node.inputs[_data_index(found)]
    redirect(graph, found.node.outputs[0], tensor)
    remove_node(graph, found.node)
    return tensor


def _data_index(found: Scaling) -> int:
    """Return where the scaled tensor enters, which may have been renewed by the fold."""
    return next(i for i, tensor in enumerate(found.node.inputs) if not is_constant(tensor))
