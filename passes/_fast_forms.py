# SPDX-License-Identifier: Apache-2.0
"""Float functions and data movement in the forms that run fastest; what they compute stays.

Done when everything is decided, on the float graph just before Q and DQ are written: no pass needs
to know these forms. Instructions in the comments were counted on an emulated Cortex-A76, each
divided by the elements of the tensor.
"""

import itertools
from dataclasses import replace

import numpy as np

from qhyvit_onnx.composites import find_composites
from qhyvit_onnx.graph import (
    Graph,
    Node,
    Tensor,
    constant,
    fresh,
    is_output,
    make_node,
    names,
    producer,
    sole_consumer,
    tidy,
    variable,
)
from qhyvit_onnx.passes._forms import Forms
from qhyvit_onnx.units import moves

TANH_ERROR = 4.8e-4
"""Largest difference between GELU and its form with tanh (Hendrycks, Gimpel, 2016), anywhere."""

STEPS = 16
"""A GELU takes that form if its output is rounded to steps at least so many times larger."""

NARROW = 16
"""Patches of at most so many pixels are moved in two steps."""

_GELU_OPSET = 20


class FastForms:
    """Edits one graph."""

    def __init__(self, graph: Graph, forms: Forms) -> None:
        """Look at what is decided."""
        self._graph, self._forms = graph, forms
        self._owners, self._taken = dict(forms.carried), names(graph)
        self._integer = {id(node) for unit in forms.chosen for node in unit.nodes}

    def write(self) -> Forms:
        """Edit the graph; return what is carried then, and how many forms were changed."""
        count = self._gelus() + self._unfolds() + self._folds() + self._parts()
        tidy(self._graph)
        present = self._graph.tensors()
        carried = {name: owner for name, owner in self._owners.items() if name in present}
        return replace(self._forms, carried=carried, count=self._forms.count + count)

    def _gelus(self) -> int:
        """Write GELUs whose error cannot be seen with tanh: 12 instructions instead of 22."""
        found = 0
        for composite in find_composites(self._graph):
            if composite.kind == "Gelu" and self._rounds(composite.output):
                self._replace(composite.nodes, composite.input, composite.output)
                found += 1
        for node in [node for node in self._graph.nodes if node.op == "Gelu"]:
            exact = node.attrs.get("approximate", "none") == "none"
            if exact and node.domain in (None, "") and self._rounds(node.outputs[0]):
                node.attrs["approximate"] = "tanh"
                found += 1
        return found

    def _rounds(self, tensor: Tensor) -> bool:
        """Tell whether all that reads ``tensor`` reads it rounded to large steps."""
        owner = self._owners.get(tensor.name)
        if owner is None or is_output(self._graph, tensor):
            return False
        rounded = all(
            id(node) in self._integer
            or (moves(node) and all(out.name in self._owners for out in node.outputs))
            for node in tensor.outputs
        )
        return rounded and self._forms.grids.activations[owner].scale >= STEPS * TANH_ERROR

    def _replace(self, nodes: tuple[Node, ...], source: Tensor, out: Tensor) -> None:
        last = nodes[-1]
        last.outputs.clear()
        if self._graph.opset >= _GELU_OPSET:
            made = make_node("Gelu", last.name, [source], [out], attrs={"approximate": "tanh"})
        else:
            made = make_node("FastGelu", last.name, [source], [out], domain="com.microsoft")
        for node in nodes:
            node.inputs.clear()
        self._graph.nodes.append(made)

    def _unfolds(self) -> int:
        """Cut maps into patches by SpaceToDepth: 12 instructions instead of 52."""
        found = 0
        for last in [node for node in self._graph.nodes if _turns(node, _SWAPPED)]:
            chain = _unfold(self._graph, last)
            if chain is None:
                continue
            source, out, side = chain[0].inputs[0], last.outputs[0], chain[0].outputs[0].shape[1]
            channels, count = int(out.shape[3]), int(out.shape[2])
            last.outputs.clear()
            for node in chain:
                node.inputs.clear()
            deep = self._add("SpaceToDepth", source, out, {"blocksize": side})
            parted = self._reshape(deep, out, [0, side * side, channels, count])
            self._end("Transpose", parted, out, {"perm": [0, 1, 3, 2]})
            found += 1
        return found

    def _folds(self) -> int:
        """Put patches together in two steps that move whole rows: 8 instructions instead of 57."""
        found = 0
        for node in [node for node in self._graph.nodes if _turns(node, _SWAPPED)]:
            source, out = node.inputs[0], node.outputs[0]
            shape = tuple(source.shape or ())
            if len(shape) != 4 or not all(isinstance(dim, int) for dim in shape[1:]):
                continue
            _, patch, count, channels = shape
            if not 1 < patch <= NARROW or channels < patch:
                continue
            node.inputs.clear()
            node.outputs.clear()
            rows = self._add("Transpose", source, out, {"perm": [0, 2, 1, 3]})
            flat = self._reshape(rows, out, [0, count * patch, channels])
            turned = self._add("Transpose", flat, out, {"perm": [0, 2, 1]})
            target = self._shape([0, channels, count, patch], out)
            self._end("Reshape", turned, out, {}, target)
            found += 1
        return found

    def _parts(self) -> int:
        """Do the same to maps whose patches stay maps of their own, (N, C, pixels, patches)."""
        found = 0
        for turn in [node for node in self._graph.nodes if _turns(node, *_PARTED)]:
            ends = _between_reshapes(self._graph, turn)
            if ends is None:
                continue
            first, last = ends
            source, out = first.inputs[0], last.outputs[0]
            cuts = list(turn.attrs["perm"]) == _PARTED[0]
            whole, parts = (source, out) if cuts else (out, source)
            cut = first.outputs[0] if cuts else last.inputs[0]
            side = _side(*(tuple(tensor.shape or ()) for tensor in (whole, cut, parts)))
            if side is None:
                continue
            last.outputs.clear()
            for node in (first, turn, last):
                node.inputs.clear()
            (_, channels, pixels, count), (height, width) = parts.shape, whole.shape[2:]
            if cuts:
                deep = self._add("SpaceToDepth", source, out, {"blocksize": side})
                parted = self._reshape(deep, out, [0, pixels, channels, count])
                self._end("Transpose", parted, out, {"perm": [0, 2, 1, 3]})
            else:
                turned = self._add("Transpose", source, out, {"perm": [0, 2, 1, 3]})
                shape = [0, pixels * channels, height // side, width // side]
                deep = self._reshape(turned, out, shape)
                self._end("DepthToSpace", deep, out, {"blocksize": side})
            found += 1
        return found

    def _add(
        self, op: str, source: Tensor, out: Tensor, attrs: dict[str, object], *more: Tensor
    ) -> Tensor:
        """Append a node; its output is carried if ``out`` is."""
        made = variable(self._name(f"{out.name}.{op}"), dtype=out.dtype)
        if out.name in self._owners:
            self._owners[made.name] = self._owners[out.name]
        self._end(op, source, made, attrs, *more)
        return made

    def _reshape(self, source: Tensor, out: Tensor, shape: list[int]) -> Tensor:
        return self._add("Reshape", source, out, {}, self._shape(shape, out))

    def _shape(self, shape: list[int], out: Tensor) -> Tensor:
        return constant(self._name(f"{out.name}.shape"), np.array(shape, np.int64))

    def _end(
        self, op: str, source: Tensor, out: Tensor, attrs: dict[str, object], *more: Tensor
    ) -> None:
        name = self._name(f"{out.name}/{op}")
        self._graph.nodes.append(make_node(op, name, [source, *more], [out], attrs=attrs))

    def _name(self, wanted: str) -> str:
        name = fresh(wanted, self._taken)
        self._taken.add(name)
        return name


_SWAPPED = [0, 3, 2, 1]

_PARTED = ([0, 1, 3, 5, 2, 4], [0, 1, 4, 2, 5, 3])
"""Axes (N, C, H/b, b, W/b, b) with the pixels of a patch first, and back."""


def _turns(node: Node, *perms: list[int]) -> bool:
    """Tell whether ``node`` is a Transpose by one of ``perms`` that is still in the graph."""
    turns = node.op == "Transpose" and list(node.attrs.get("perm", [])) in perms
    return turns and bool(node.inputs)


def _between_reshapes(graph: Graph, turn: Node) -> tuple[Node, Node] | None:
    """Return the Reshapes right before and after ``turn``, with no reader between but these."""
    first, last = producer(turn.inputs[0]), sole_consumer(graph, turn.outputs[0])
    if first is None or last is None or first.op != "Reshape" or last.op != "Reshape":
        return None
    return (first, last) if sole_consumer(graph, first.outputs[0]) is turn else None


def _side(whole: tuple, cut: tuple, parts: tuple) -> int | None:  # type: ignore[type-arg]
    """Return the side b of square patches: (N, C, H, W) to (N, C, H/b, b, W/b, b) to parts."""
    if (len(whole), len(cut), len(parts)) != (4, 6, 4):
        return None
    if not all(isinstance(size, int) for size in (*whole[1:], *cut[1:], *parts[1:])):
        return None
    channels, height, width = whole[1:]
    _, down, side, across, other = cut[1:]
    square = side == other > 1 and (down * side, across * side) == (height, width)
    same = cut[1] == channels and parts[1:] == (channels, side**2, down * across)
    return side if square and same else None


def _unfold(graph: Graph, last: Node) -> tuple[Node, Node, Node, Node] | None:
    """Return the four nodes that cut a map into square patches, the last of them given.

    Reshape to (N C H/b, b, W/b, b), Transpose, Reshape to (N, C, HW/bb, bb), Transpose.
    """
    second = producer(last.inputs[0])
    first = producer(second.inputs[0]) if second is not None and second.op == "Reshape" else None
    turns = first is not None and first.op == "Transpose"
    start = producer(first.inputs[0]) if first is not None and turns else None
    if first is None or second is None or start is None or start.op != "Reshape":
        return None
    chain = (start, first, second, last)
    alone = all(sole_consumer(graph, a.outputs[0]) is b for a, b in itertools.pairwise(chain))
    shapes = [tuple(t.shape or ()) for t in (start.inputs[0], start.outputs[0], last.outputs[0])]
    if not alone or list(first.attrs.get("perm", [])) != [0, 2, 1, 3]:
        return None
    return chain if _is_square(*shapes) else None


def _is_square(source: tuple, cut: tuple, patches: tuple) -> bool:  # type: ignore[type-arg]
    """Tell whether these are the shapes of a map, cut into square patches, channels last."""
    if any(len(shape) != 4 for shape in (source, cut, patches)):
        return False
    sizes = (*source[1:], *cut[1:], *patches[1:])
    if not all(isinstance(size, int) for size in sizes):
        return False
    (channels, height, width), (side, across, other), (pixels, count, last) = (
        shape[1:] for shape in (source, cut, patches)
    )
    whole = height % side == 0 and across * side == width and side == other > 1
    return whole and (pixels, count, last) == (side**2, height // side * across, channels)
