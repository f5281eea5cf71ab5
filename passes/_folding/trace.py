# SPDX-License-Identifier: Apache-2.0
"""What the rules of the tracer share: the graph, the flow they fill, and channels on their way."""

from collections.abc import Sequence

from qhyvit_onnx.composites import find_composites
from qhyvit_onnx.graph import Graph, Node, Tensor
from qhyvit_onnx.passes._folding.flow import Flow
from qhyvit_onnx.passes._readers import Ids, Moves, Placed


class Trace:
    """One walk over a graph, whose nodes are sorted."""

    def __init__(self, graph: Graph, moves: Moves) -> None:
        """Nothing is known yet."""
        self.graph, self.moves, self.flow = graph, moves, Flow()
        self.done: set[int] = set()
        """Nodes that an earlier rule took along."""
        self.placed: dict[str, Placed] = {}
        """By tensor that movement made; the channels there may be known or not."""
        self.spelled = {id(node) for item in find_composites(graph) for node in item.nodes}
        """Nodes of functions that onnxruntime knows by their constants: a GELU has one half."""

    def ids(self, tensor: Tensor) -> Ids | None:
        """Return the channels of a tensor, None when it has none that could be folded."""
        return self.flow.ids.get(tensor.name)

    def give(self, tensor: Tensor, ids: Ids) -> None:
        """Say which channels ``tensor`` holds."""
        if tensor.shape is not None and len(tensor.shape) == ids.ndim:
            self.flow.ids[tensor.name] = ids
        else:  # which axis is which is not known
            self.flow.block(ids)

    def source(self, tensor: Tensor, axis: int, count: int) -> Ids | None:
        """Give ``tensor`` new channels along ``axis``; None when its rank is not known."""
        if tensor.shape is None:
            return None
        shape = [1] * len(tensor.shape)
        shape[axis] = count
        ids = self.flow.new(tuple(shape))
        self.give(tensor, ids)
        return ids.reshape(-1)

    def block(self, node: Node) -> None:
        """Forbid scale and shift to all that ``node`` reads: it gives nothing back."""
        for tensor in node.inputs:
            if (ids := self.ids(tensor)) is not None:
                self.flow.block(ids)

    def lose(self, tensors: Sequence[Tensor]) -> None:
        """Forbid everything to channels that are read where nobody knows which is which."""
        for tensor in tensors:
            placed = self.placed.get(tensor.name)
            if placed is not None and tensor.name not in self.flow.ids:
                self.flow.block(placed.origin)
