# SPDX-License-Identifier: Apache-2.0
"""Symbolic shapes and small values of every tensor, in one walk over the graph.

Each node is asked of onnx's own shape inference, with free dims under names that stand for
expressions; what onnx gives up on (a Reshape whose target has symbols) is worked out here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import TensorProto

from qhyvit_onnx.graph import Graph, Node, Tensor, is_absent, is_constant, node_proto, value
from qhyvit_onnx.symbolic.call import LARGEST, Call, Value
from qhyvit_onnx.symbolic.dims import Dim, Shape, Symbols, count, is_number, plain, quotient
from qhyvit_onnx.symbolic.extents import extent
from qhyvit_onnx.symbolic.values import evaluate

_INTEGERS = (TensorProto.INT64, TensorProto.INT32)
_REFUSALS = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    onnx.defs.SchemaError,
    KeyError,
    TypeError,
    ValueError,
)


@dataclass(slots=True)
class Knowledge:
    """What is known of every tensor, by name."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    elems: dict[str, int] = field(default_factory=dict)
    """ONNX element types."""
    values: dict[str, Value] = field(default_factory=dict)

    def same_shape(self, a: Tensor, b: Tensor) -> bool:
        """Tell whether two tensors have equal shapes, whatever the free dims are."""
        first, second = self.shapes.get(a.name), self.shapes.get(b.name)
        return first is not None and second is not None and first == second


def infer(graph: Graph, given: Mapping[str, onnx.TypeProto] | None = None) -> Knowledge:
    """Return what can be said of every tensor; ``graph`` is sorted and not changed.

    ``given`` holds tensor types known from elsewhere, by tensor name; they only stand in where the
    graph itself does not say a shape. Dims without a number or a name are unknown.
    """
    walk = _Walk(graph, given or {})
    for tensor in graph.inputs:
        walk.learn_input(tensor)
    for node in graph.nodes:
        walk.visit(node)
    return walk.known


class _Walk:
    """One walk in topological order."""

    def __init__(self, graph: Graph, given: Mapping[str, onnx.TypeProto]) -> None:
        self.known, self._given = Knowledge(), given
        self.symbols = Symbols()
        self._seen_constants: set[int] = set()
        domains = graph.import_domains or []
        self._versions = {d.domain: d.version for d in domains} | {"": graph.opset}
        self._opsets = [onnx.helper.make_opsetid(k, v) for k, v in self._versions.items()]

    def learn_input(self, tensor: Tensor) -> None:
        if tensor.dtype is None:
            return
        self.known.elems[tensor.name] = _elem(tensor.dtype)
        if tensor.shape is not None:
            self.known.shapes[tensor.name] = tuple(map(self._named, tensor.shape))

    def _named(self, dim: int | str | None) -> Dim:
        if isinstance(dim, int) and dim >= 0:
            return dim
        return self.symbols.named(dim) if isinstance(dim, str) else self.symbols.fresh()

    def _learn_constant(self, tensor: Tensor) -> None:
        if id(tensor) in self._seen_constants:
            return
        self._seen_constants.add(id(tensor))
        self.known.elems[tensor.name] = _elem(tensor.dtype)
        self.known.shapes[tensor.name] = tuple(int(size) for size in tensor.shape)
        if prod(tensor.shape) <= LARGEST:
            array = value(tensor)
            if array is not None:
                self.known.values[tensor.name] = array

    def visit(self, node: Node) -> None:
        for tensor in node.inputs:
            if is_constant(tensor):
                self._learn_constant(tensor)
        self._learn_types(node)
        self._learn_given(node)
        self._learn_shape(node)
        self._learn_value(node)

    def _learn_types(self, node: Node) -> None:
        """Ask onnx for the element types and shapes of the outputs."""
        for name, kind in self._ask(node).items():
            if not kind.HasField("tensor_type") or not kind.tensor_type.elem_type:
                continue
            self.known.elems[name] = kind.tensor_type.elem_type
            if kind.tensor_type.HasField("shape"):
                self.known.shapes[name] = tuple(map(self._read, kind.tensor_type.shape.dim))

    def _ask(self, node: Node) -> dict[str, onnx.TypeProto]:
        if any(
            isinstance(item, type(node)) or hasattr(item, "nodes") for item in node.attrs.values()
        ):
            return {}  # control flow
        try:
            version = self._versions[node.domain or ""]
            schema = onnx.defs.get_schema(node.op, version, node.domain or "")
            given = [tensor.name for tensor in node.inputs if not is_absent(tensor)]
            types = {name: self._type(name) for name in given}
            known = {name: self.known.values[name] for name in given if name in self.known.values}
            data = {
                name: onnx.numpy_helper.from_array(array, name)
                for name, array in known.items()
                if array.dtype != object
            }
            found: dict[str, onnx.TypeProto] = onnx.shape_inference.infer_node_outputs(
                schema, node_proto(node), types, data, opset_imports=self._opsets
            )
        except _REFUSALS:
            return {}
        return found

    def _type(self, name: str) -> onnx.TypeProto:
        shape = self.known.shapes.get(name)
        written = None if shape is None else [self._write(dim) for dim in shape]
        return onnx.helper.make_tensor_type_proto(self.known.elems[name], written)

    def _write(self, dim: Dim) -> int | str:
        return int(dim) if is_number(dim) else self.symbols.text(dim)

    def _read(self, dim: onnx.TensorShapeProto.Dimension) -> Dim:
        if dim.HasField("dim_value"):
            return int(dim.dim_value)
        return self.symbols.dim(dim.dim_param)

    def _learn_shape(self, node: Node) -> None:
        """Replace what onnx says of the first output where more can be said."""
        rule = {"Reshape": self._reshape, "Expand": self._expand, "Flatten": self._flatten}.get(
            node.op
        )
        if node.op == "ConstantOfShape":
            rule = self._filled
        shape = rule(node) if rule else None
        if shape is None and rule is None:
            shape = self._extent(node)
        if shape is not None:
            self.known.shapes[node.outputs[0].name] = shape

    def _extent(self, node: Node) -> Shape | None:
        """Return a shape worked out from free dims; what stays open is what onnx said."""
        said, found = self.known.shapes.get(node.outputs[0].name), extent(self._call(node))
        if said is None or found is None or len(said) != len(found):
            return None
        pairs = zip(said, found, strict=True)
        return tuple(a if b is None or is_number(a) else self._size(b) for a, b in pairs)

    def _size(self, value: Dim) -> Dim:
        """Return a computed dim; one that is no positive number can only be an unknown one."""
        if is_number(value):
            return value if value > 0 else self.symbols.fresh()
        return self.symbols.standing_for(value)

    def _call(self, node: Node) -> Call:
        args = [self.known.values.get(tensor.name) for tensor in node.inputs]
        shapes = [self.known.shapes.get(tensor.name) for tensor in node.inputs]
        return Call(node, args, shapes, self.known.elems.get(node.outputs[0].name, 0))

    def _learn_given(self, node: Node) -> None:
        """Take the given types of outputs without a shape so far."""
        for tensor in node.outputs:
            if tensor.name in self._given and tensor.name not in self.known.shapes:
                kind = self._given[tensor.name].tensor_type
                dims = (
                    d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim
                )
                self.known.elems[tensor.name] = kind.elem_type
                self.known.shapes[tensor.name] = tuple(map(self._named, dims))

    def _elements(self, tensor: Tensor) -> list[Dim] | None:
        """Return the elements of a 1-D integer tensor; unknown ones have symbols of their own."""
        array = self.known.values.get(tensor.name)
        return None if array is None else [plain(item) for item in array.reshape(-1).tolist()]

    def _as_dim(self, element: Dim) -> Dim:
        """Return an element as a dim; one that may be zero or negative becomes a new symbol."""
        if is_number(element):
            return int(element) if element >= 0 else self.symbols.fresh()
        return element if element.is_positive else self.symbols.fresh()

    def _filled(self, node: Node) -> Shape | None:
        elements = self._elements(node.inputs[0])
        return None if elements is None else tuple(map(self._as_dim, elements))

    def _reshape(self, node: Node) -> Shape | None:
        target = self._elements(node.inputs[1])
        source = self.known.shapes.get(node.inputs[0].name)
        if target is None:
            return None
        if not node.attrs.get("allowzero", 0):
            zeros = [i for i, item in enumerate(target) if is_number(item) and item == 0]
            if zeros and (source is None or zeros[-1] >= len(source)):
                return None
            for i in zeros:
                target[i] = source[i] if source is not None else 0
        free = [i for i, item in enumerate(target) if is_number(item) and item == -1]
        dims = [self._as_dim(item) for item in target]
        if len(free) == 1 and source is not None:
            rest = count(tuple(dims[: free[0]] + dims[free[0] + 1 :]))
            dims[free[0]] = quotient(count(source), rest) or self.symbols.fresh()
        return tuple(dims)

    def _expand(self, node: Node) -> Shape | None:
        target = self._elements(node.inputs[1])
        source = self.known.shapes.get(node.inputs[0].name)
        if target is None or source is None:
            return None
        rank = max(len(source), len(target))
        pairs = zip(_padded(source, rank), _padded(target, rank), strict=True)
        return tuple(self._broadcast(a, b) for a, b in pairs)

    def _broadcast(self, a: Dim, b: Dim) -> Dim:
        if is_number(a) and a == 1:
            return self._as_dim(b)
        if (is_number(b) and b == 1) or a == b:
            return a
        return a if is_number(a) else self.symbols.fresh()

    def _flatten(self, node: Node) -> Shape | None:
        source = self.known.shapes.get(node.inputs[0].name)
        if source is None:
            return None
        axis = node.attrs.get("axis", 1)
        return count(source[:axis]), count(source[axis:])

    def _learn_value(self, node: Node) -> None:
        """Work out the first output; a short integer vector that stays unknown gets symbols."""
        first = node.outputs[0].name
        if first not in self.known.elems:
            return
        found = evaluate(self._call(node))
        if found is None:
            found = self._unknown(first)
        if found is not None:
            self.known.values[first] = found
            self.known.shapes[first] = tuple(found.shape)

    def _unknown(self, name: str) -> Value | None:
        shape = self.known.shapes.get(name)
        if shape is None or self.known.elems[name] not in _INTEGERS or len(shape) > 1:
            return None
        if not all(map(is_number, shape)) or count(shape) > 8:
            return None
        array = np.empty(shape, dtype=object)
        for index in np.ndindex(*shape):
            array[index] = self.symbols.unknown()
        return array


def _padded(shape: Sequence[Dim], rank: int) -> list[Dim]:
    return [1] * (rank - len(shape)) + list(shape)


def _elem(dtype: DTypeLike) -> int:
    """Return the ONNX element type of a graphsurgeon dtype."""
    return (
        dtype
        if isinstance(dtype, int)
        else int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    )
