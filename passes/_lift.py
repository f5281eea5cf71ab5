# SPDX-License-Identifier: Apache-2.0
"""Bring old models to the opset that our rewrites need, and local functions into the graph."""

from onnx import inliner, version_converter

from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.graph import Graph, Tensor, import_graph, is_constant
from qhyvit_onnx.state import State

LOWEST = 17
"""LayerNormalization became an op here."""

OUTLINED = 1024
"""Elements above which a weight is kept out of the conversion: adapters read small ones only."""

_LAST_AXIS = frozenset({"Softmax", "LogSoftmax", "Hardmax"})


def inline_functions(state: State) -> int:
    """Replace calls of functions that the model brings along by their bodies."""
    if not state.graph.functions:
        return 0
    model = inliner.inline_local_functions(state.model())
    state.graph = import_graph(model)
    return 1


def lift(state: State) -> int:
    """Convert the graph to opset 17 when it is older; newer ones keep theirs.

    Error:
        ModelError, naming the op, when onnx has no way to convert it.
    """
    if state.graph.opset >= LOWEST:
        return 0
    weights = _outline(state.graph)
    try:
        lifted = version_converter.convert_version(state.model(), LOWEST)
    except (RuntimeError, ValueError, version_converter.ConvertError) as error:
        raise _refusal(state.graph, str(error)) from error
    graph = import_graph(lifted)
    _put_back(graph, weights)
    state.graph = graph
    return 1


def _outline(graph: Graph) -> dict[str, Tensor]:
    """Turn large initializers into inputs and return them: the conversion need not copy them."""
    found = [t for t in graph.tensors().values() if is_constant(t) and _volume(t) > OUTLINED]
    kept = {tensor.name: tensor.copy() for tensor in found}
    for tensor in found:
        tensor.to_variable(tensor.dtype, list(tensor.shape))
        tensor.type = "tensor_type"  # graphsurgeon forgets it
        graph.inputs.append(tensor)
    return kept


def _put_back(graph: Graph, weights: dict[str, Tensor]) -> None:
    """Turn the inputs that ``_outline`` made into initializers again."""
    for tensor in graph.inputs:
        if tensor.name in weights:
            tensor.to_constant(weights[tensor.name]._values)
    graph.inputs = [tensor for tensor in graph.inputs if tensor.name not in weights]


def _volume(tensor: Tensor) -> int:
    volume = 1
    for size in tensor.shape:
        volume *= int(size)
    return volume


def _refusal(graph: Graph, message: str) -> ModelError:
    """Return the error to raise, with the node whose op the message names."""
    words = {word.strip(".,:;()[]\"'") for word in message.split()}
    culprit = next((node for node in graph.nodes if node.op in words), None)
    first = message.strip().splitlines()[0] if message.strip() else "no reason given"
    what = f" {culprit.op}" if culprit is not None else ""
    return ModelError(
        f"cannot convert{what} from opset {graph.opset} to {LOWEST}: {first}",
        node=culprit.name if culprit is not None else "",
        hint=f"export the model again at opset {LOWEST} or above",
    )
