# SPDX-License-Identifier: Apache-2.0
"""Streams: which anchors an activation saw last, and whether it is a feature map or tokens."""

from qhyvit_onnx.graph import Tensor
from qhyvit_onnx.passes._bridges.ancestry import Ancestry, members, union
from qhyvit_onnx.passes._bridges.anchors import find_anchors

ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sum", "Mean", "Where"})


class Streams:
    """What every activation carries.

    A *gate* carries nothing: an operand of an elementwise op that is spread over axes the other
    operand has, and that a layer made (squeeze-and-excitation, the slopes of a dynamic ReLU). A sum
    over positions that is spread again as it is, is the result of separable attention and counts.
    What mixes positions for a gate only is no anchor.
    """

    def __init__(self, ancestry: Ancestry) -> None:
        """Find the anchors, then walk the graph once, downwards."""
        self.ancestry, self.anchors = ancestry, find_anchors(ancestry)
        self._latest: dict[int, int] = {}
        self._features: set[int] = set()
        self._made: set[int] = set()
        self.carried: list[list[Tensor]] = []
        """By node: the activations it reads, gates left out."""
        for place in range(len(ancestry.nodes)):
            self.carried.append(self._carrying(place))
            self._visit(place)
        self.anchors = self.anchors.within(self._lasting())

    def latest(self, tensor: Tensor) -> int:
        """Return the anchors above ``tensor`` that have no other one below them."""
        return self._latest.get(id(tensor), 0)

    def is_feature(self, tensor: Tensor) -> bool:
        """Tell whether some path up from ``tensor`` meets a local anchor before a global one."""
        return id(tensor) in self._features

    def _visit(self, place: int) -> None:
        bit, tensors = 1 << place, self.carried[place]
        outputs = list(map(id, self.ancestry.nodes[place].outputs))
        latest = bit if self.anchors.all & bit else self._newest(tensors)
        self._latest.update(dict.fromkeys(outputs, latest))
        if self.anchors.everywhere & bit:
            return
        if self.anchors.local & bit or any(map(self.is_feature, tensors)):
            self._features.update(outputs)
        if self.ancestry.layers & bit or any(id(tensor) in self._made for tensor in tensors):
            self._made.update(outputs)

    def _lasting(self) -> int:
        """Return the nodes that an output of the graph carries on."""
        found = 0
        for place in reversed(range(len(self.carried))):
            if self.ancestry.public[place] or found >> place & 1:
                sources = map(self.ancestry.source, self.carried[place])
                found |= union(1 << source for source in sources if source >= 0) | 1 << place
        return found

    def _newest(self, tensors: list[Tensor]) -> int:
        found = union(map(self.latest, tensors))
        for place in members(found):
            found &= ~self.ancestry.above[place] | 1 << place
        return found

    def _carrying(self, place: int) -> list[Tensor]:
        tensors, node = self.ancestry.inputs[place], self.ancestry.nodes[place]
        if len(tensors) < 2 or node.op not in ELEMENTWISE:
            return tensors
        spread = {id(tensor) for tensor in tensors if _is_spread(tensor, node.outputs[0])}
        if len(spread) == len(tensors):
            return tensors
        return [tensor for tensor in tensors if id(tensor) not in spread & self._made]


def _is_spread(tensor: Tensor, result: Tensor) -> bool:
    """Tell whether ``tensor`` is repeated along some axis of ``result``."""
    if tensor.shape is None or result.shape is None:
        return False
    rank = len(result.shape)
    sizes = [1] * (rank - len(tensor.shape)) + list(tensor.shape)
    return any(size == 1 != whole for size, whole in zip(sizes, result.shape, strict=True))
