# SPDX-License-Identifier: Apache-2.0
"""ONNX models as programs for the kernels, and onnxruntime for the nodes that have no kernel."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper

from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.graph import fresh, opset_of
from qhyvit_onnx.kernels.program import Array, Opaque, Program, Step
from qhyvit_onnx.runtime import Arrays, Session

_NUMBERS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
"""How a Constant may spell its value, besides ``value`` itself."""


def program_of(model: onnx.ModelProto) -> Program:
    """Return ``model`` as a program; steps have the names of its nodes, made unique.

    Functions that the model brings along are inlined, Constant nodes become constants. Of a graph
    that is being edited, ``State.model()`` gives the model.

    Raises:
        ModelError: the model has sparse initializers.

    """
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph = model.graph
    if graph.sparse_initializer:
        raise ModelError("the model has sparse initializers, which no kernel reads")
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    steps: list[Step] = []
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        name = node.name if node.name and node.name not in taken else f"{node.op_type}_{index}"
        step = _step(node, fresh(name, taken))
        taken.add(step.name)
        number = _constant(step)
        if number is None:
            steps.append(step)
        else:
            constants[step.outputs[0]] = number
    return Program(
        steps=tuple(steps),
        constants=constants,
        inputs=tuple(item.name for item in graph.input if item.name not in constants),
        outputs=tuple(item.name for item in graph.output),
        opset=opset_of(model),
        domains={item.domain: item.version for item in model.opset_import if item.domain},
    )


def _step(node: onnx.NodeProto, name: str) -> Step:
    bodies = (body for attr in node.attribute for body in (attr.g, *attr.graphs))
    return Step(
        name=name,
        op=node.op_type,
        domain=node.domain,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attrs={attr.name: _python(helper.get_attribute_value(attr)) for attr in node.attribute},
        captured=tuple(sorted({name for body in bodies for name in _free(body)})),
    )


def _python(value: Any) -> Any:  # noqa: ANN401 -- whatever an attribute may be
    match value:
        case bytes():
            return value.decode()
        case onnx.TensorProto():
            return numpy_helper.to_array(value)
        case int() | float() | str() | onnx.GraphProto():
            return value
    return [_python(item) for item in value]


def _free(body: onnx.GraphProto) -> Iterator[str]:
    """Yield what a body reads and does not define: tensors of the graph around it."""
    defined = {item.name for item in (*body.input, *body.initializer)}
    for node in body.node:
        inner = (graph for attr in node.attribute for graph in (attr.g, *attr.graphs))
        reads = (*node.input, *(name for graph in inner for name in _free(graph)))
        yield from (name for name in reads if name and name not in defined)
        defined.update(node.output)
    yield from (item.name for item in body.output if item.name not in defined)


def _constant(step: Step) -> Array | None:
    """Return the value of a Constant; None for other ops, strings and sparse values."""
    if step.op != "Constant" or step.domain not in {"", "ai.onnx"}:
        return None
    for name, value in step.attrs.items():
        if name == "value":
            return np.asarray(value)
        if name in _NUMBERS:
            return np.asarray(value, _NUMBERS[name])
    return None


def opaque_runner(program: Program) -> Opaque:
    """Return what runs the steps of ``program`` in onnxruntime; it keeps a session for each."""
    sessions: dict[tuple[Any, ...], Session] = {}

    def run(step: Step, arrays: Sequence[Array | None]) -> list[Array]:
        types = tuple(None if array is None else array.dtype for array in arrays)
        if (step, types) not in sessions:
            model = _one_node(step, arrays, program.opset, program.domains)
            sessions[step, types] = Session(model)
        return _outputs(step, sessions[step, types], arrays)

    return run


def run_opaque(step: Step, arrays: Sequence[Array | None], opset: int) -> list[Array]:
    """Run one step in onnxruntime: ``arrays`` of its inputs, then of what it captures.

    Raises:
        ModelError: onnxruntime cannot, or the result is no tensor.

    """
    return _outputs(step, Session(_one_node(step, arrays, opset, {})), arrays)


def _outputs(step: Step, session: Session, arrays: Sequence[Array | None]) -> list[Array]:
    feeds: Arrays = {
        name: array
        for name, array in zip(_input_names(step), arrays, strict=True)
        if array is not None
    }
    found = session.run(feeds)
    wrong = next((name for name in found if not isinstance(found[name], np.ndarray)), None)
    if wrong is not None:
        raise ModelError(f"{step.op} gives {wrong!r}, which is no tensor", node=step.name)
    return [found[name] if name else np.zeros(0, np.float32) for name in step.outputs]


def _input_names(step: Step) -> list[str]:
    """Return a name for everything a step reads; bodies find what they capture by its own name."""
    taken = set(step.captured)
    names = []
    for name in step.inputs:
        names.append(fresh(name, taken) if name else "")
        taken.add(names[-1])
    return [*names, *step.captured]


def _one_node(
    step: Step, arrays: Sequence[Array | None], opset: int, domains: Mapping[str, int]
) -> onnx.ModelProto:
    """Return a model of one node; the shapes of its inputs are left open."""
    names = _input_names(step)
    node = helper.make_node(
        step.op, names[: len(step.inputs)], list(step.outputs), step.name, domain=step.domain
    )
    node.attribute.extend(_attribute(name, value) for name, value in step.attrs.items())
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
        for name, array in zip(names, arrays, strict=True)
        if array is not None
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in step.outputs if name]
    versions = {step.domain: 1, **domains, "": opset}
    if "ai.onnx" in versions:  # another name of the default operator set
        versions["ai.onnx"] = opset
    imports = [helper.make_opsetid(name, version) for name, version in versions.items()]
    graph = helper.make_graph([node], step.op, inputs, outputs)
    ir_version = helper.find_min_ir_version_for(imports, ignore_unknown=True)
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def _attribute(name: str, value: Any) -> onnx.AttributeProto:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        value = numpy_helper.from_array(value)
    if isinstance(value, list) and not value:  # an empty list does not say what it is a list of
        return helper.make_attribute(name, value, attr_type=onnx.AttributeProto.INTS)
    return helper.make_attribute(name, value)
