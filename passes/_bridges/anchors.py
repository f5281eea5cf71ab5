# SPDX-License-Identifier: Apache-2.0
"""Anchors: the nodes that mix positions, and on which side of a hybrid network they do.

Local: windows that overlap their neighbours, and resizing. Global: a product of two activations
summed over positions or channels, as in softmax, linear, separable and transposed attention.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qhyvit_onnx.facts import Side
from qhyvit_onnx.graph import Node, Tensor, axes_of, producer
from qhyvit_onnx.passes._bridges.ancestry import Ancestry
from qhyvit_onnx.pattern import Miss

WINDOWS = frozenset({
    "Conv", "ConvTranspose", "DeformConv", "AveragePool", "MaxPool", "LpPool",
})  # fmt: skip
RESIZING = frozenset({"Resize", "Upsample"})
FUSED = frozenset({"Attention", "MultiHeadAttention"})
"""Ops that are a whole attention: query, key and value are their first inputs."""
SUMS = frozenset({"ReduceSum", "ReduceMean", "GlobalAveragePool"})
PARTING = frozenset({"Split", "Slice", "Gather"})
"""Ops whose outputs hold different elements of their input."""

PATCHES = "window no larger than its stride: patches, no neighbours"
SUMMARY = "window over the whole map: a summary"
UNREAD = "window of unknown size: the shape of a computed weight is not known"
OUTSIDE = "no layer above or none below: the border of the network"
OUTER = "Einsum that sums over nothing"
GATE = "mixes positions for a gate only"
GATED = "product summed over positions, but neither factor is a weight over them: a gate or a norm"


@dataclass(frozen=True, slots=True)
class Anchors:
    """The anchors of one graph, as sets of nodes."""

    local: int
    everywhere: int
    misses: Mapping[str, int]
    """What looked like an anchor: how often, by reason."""

    @property
    def all(self) -> int:
        """Both sides."""
        return self.local | self.everywhere

    def within(self, places: int) -> "Anchors":
        """Return those of ``places``; the others, which end in gates, count as misses."""
        local, everywhere = self.local & places, self.everywhere & places
        gates = (self.all & ~places).bit_count()
        misses = {**self.misses, GATE: gates} if gates else self.misses
        return Anchors(local, everywhere, misses)


def find_anchors(ancestry: Ancestry) -> Anchors:
    """Return every anchor; nodes that no activation reaches are none."""
    sides = {Side.LOCAL: 0, Side.GLOBAL: 0}
    misses: Counter[str] = Counter()
    for place in range(len(ancestry.nodes)):
        found = mixing(ancestry, place)
        if isinstance(found, Miss):
            misses[found.reason] += 1
        elif found is not None:
            sides[found] |= 1 << place
    return Anchors(sides[Side.LOCAL], sides[Side.GLOBAL], misses)


def mixing(ancestry: Ancestry, place: int) -> Side | Miss | None:
    """Return the side on which a node mixes positions, None when it does not, or why it only seems.

    Source:
        Local: a window mixes neighbours when it is larger than its stride on some axis (patch
        embeddings are not). Global: attention as in Vaswani et al. 2017 (softmax), Katharopoulos
        et al. 2020 (linear), Mehta and Rastegari 2022 (separable), El-Nouby et al. 2021
        (transposed).
    """
    node = ancestry.nodes[place]
    if not ancestry.inputs[place]:
        return None
    if node.op in WINDOWS | RESIZING:
        return _window(ancestry, place)
    if node.op in FUSED:
        return Side.GLOBAL
    if node.op in {"MatMul", "Gemm", "Einsum"}:
        return _product(ancestry, node)
    if node.op in SUMS:
        return _summed(ancestry, node)
    return None


def operands(ancestry: Ancestry, place: int) -> list[Tensor]:
    """Return the activations that a global anchor multiplies."""
    node = ancestry.nodes[place]
    if node.op in SUMS:
        return ancestry.inputs[ancestry.source(node.inputs[0])]
    return [tensor for tensor in node.inputs[:3] if ancestry.varies(tensor)]


def _window(ancestry: Ancestry, place: int) -> Side | Miss | None:
    node, layers = ancestry.nodes[place], ancestry.layers
    if node.op not in RESIZING:
        kernel = list(node.attrs.get("kernel_shape") or list(node.inputs[1].shape or ())[2:])
        if not kernel:
            return Miss(UNREAD, node.name)
        strides = node.attrs.get("strides") or [1] * len(kernel)
        if all(size == 1 for size in kernel):
            return None
        if all(size <= step for size, step in zip(kernel, strides, strict=True)):
            return Miss(PATCHES, node.name)
        shape = node.outputs[0].shape
        if shape is not None and all(size == 1 for size in list(shape)[2:]):
            return Miss(SUMMARY, node.name)
    if not ancestry.above[place] & layers or not ancestry.below[place] & layers:
        return Miss(OUTSIDE, node.name)
    return Side.LOCAL


def _product(ancestry: Ancestry, node: Node) -> Side | Miss | None:
    factors = [tensor for tensor in node.inputs if ancestry.varies(tensor)]
    if len(factors) < 2 or not all(map(ancestry.varies, node.inputs[:2])):
        return None
    if node.op != "Einsum":
        return Side.GLOBAL
    terms, _, result = str(node.attrs["equation"]).replace(" ", "").partition("->")
    shared = set.intersection(*(set(term) for term in terms.split(",")))
    return Side.GLOBAL if shared - set(result) - {"."} else Miss(OUTER, node.name)


def _summed(ancestry: Ancestry, node: Node) -> Side | Miss | None:
    """Judge a sum over an elementwise product: attention written without a MatMul."""
    above = producer(node.inputs[0])
    if above is None or above.op != "Mul" or not all(map(ancestry.varies, above.inputs)):
        return None
    first, second = above.inputs
    if first.shape is None or second.shape is None:
        return Miss("product summed over positions: shapes unknown", node.name)
    rank = max(len(first.shape), len(second.shape))
    axes = list(range(2, rank)) if node.op == "GlobalAveragePool" else axes_of(node)
    if not axes:
        return None
    sizes = [_padded(tensor, rank) for tensor in (first, second)]
    axes = [axis % rank for axis in axes]
    everywhere = all(size[axis] != 1 for size in sizes for axis in axes)
    weighs = _outer(*sizes) or any(_normalised(tensor, axes) for tensor in (first, second))
    itself = _origin(ancestry, first) is _origin(ancestry, second)
    return Side.GLOBAL if everywhere and weighs and not itself else Miss(GATED, node.name)


def _padded(tensor: Tensor, rank: int) -> list[int | str | None]:
    return [1] * (rank - len(tensor.shape)) + list(tensor.shape)


def _outer(first: Sequence[object], second: Sequence[object]) -> bool:
    """Tell whether each factor is spread along an axis that only the other one has."""
    pairs = list(zip(first, second, strict=True))
    return any(a == 1 != b for a, b in pairs) and any(b == 1 != a for a, b in pairs)


def _normalised(tensor: Tensor, axes: Sequence[int]) -> bool:
    """Tell whether ``tensor`` sums to one over ``axes``, or was divided by its size over them."""
    node = producer(tensor)
    if node is None:
        return False
    rank = len(tensor.shape)
    if node.op == "Softmax":
        return node.attrs.get("axis", -1) % rank in axes
    if node.op != "Div" or node.inputs[1].shape is None:
        return False
    below = _padded(node.inputs[1], rank)
    return all(below[axis] == 1 for axis in axes)


def _origin(ancestry: Ancestry, tensor: Tensor) -> Tensor:
    """Follow ``tensor`` up through ops on one activation that are neither layer nor selection."""
    while (place := ancestry.source(tensor)) >= 0:
        single = len(ancestry.inputs[place]) == 1 and ancestry.nodes[place].op not in PARTING
        if not single or ancestry.layers >> place & 1:
            break
        tensor = ancestry.inputs[place][0]
    return tensor
