# SPDX-License-Identifier: Apache-2.0
"""Shapes from three sources: the graph, onnxruntime's inference, and as a last resort one run."""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from qhyvit_onnx.data import Feeds
from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.graph import Graph
from qhyvit_onnx.layout.chains import Layout, analyse, unknown_shapes
from qhyvit_onnx.runtime import Session, symbolic_shapes
from qhyvit_onnx.symbolic.dims import is_number
from qhyvit_onnx.symbolic.shapes import Knowledge, infer

Export: TypeAlias = Callable[[], onnx.ModelProto]


def completed(graph: Graph, export: Export, samples: Feeds) -> Layout:
    """Return the layout of ``graph``; what its own shapes leave open is asked for elsewhere.

    ``export`` gives the graph as a model; it is called only if there is something to ask.
    """
    known = infer(graph)
    observed: tuple[str, ...] = ()
    given: dict[str, onnx.TypeProto] = {}
    if unknown_shapes(graph, known):
        given = symbolic_shapes(export())
        known = infer(graph, given)
    if missing := unknown_shapes(graph, known):
        seen = _observe(graph, known, export(), missing, samples)
        known, observed = infer(graph, given | seen), tuple(seen)
    return analyse(graph, known, observed)


def _observe(
    graph: Graph, known: Knowledge, model: onnx.ModelProto, wanted: Iterable[str], samples: Feeds
) -> dict[str, onnx.TypeProto]:
    """Return the types that one sample gives; only the ranks if an input has a free dim."""
    feeds = next(iter(samples), None)
    if feeds is None:
        return {}
    present = {info.name for info in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in present)
    try:
        values = Session(model).run(feeds, list(wanted))
    except ModelError:
        return {}
    sizes = [dim for tensor in graph.inputs for dim in known.shapes.get(tensor.name, (None,))]
    fixed = all(dim is not None and is_number(dim) for dim in sizes)
    arrays = {name: array for name, array in values.items() if isinstance(array, np.ndarray)}
    return {name: _type_of(array, fixed=fixed) for name, array in arrays.items()}


def _type_of(array: NDArray[np.generic], *, fixed: bool) -> onnx.TypeProto:
    elem = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_type_proto(elem, array.shape if fixed else [None] * array.ndim)
