# SPDX-License-Identifier: Apache-2.0
"""What a model file says of itself: inputs and outputs, weights, whether it is quantized."""

from contextlib import suppress
from math import prod
from pathlib import Path

import onnx

from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.inspection.records import Port
from qhyvit_onnx.model_checks import QUANTIZED, constants, scopes
from qhyvit_onnx.model_io import load_model


def load_any(path: Path) -> onnx.ModelProto:
    """Load a float model with every check; a quantized one, which they refuse, without.

    Error:
        As ``load_model``.
    """
    try:
        return load_model(path)
    except ModelError:
        with suppress(Exception):
            model = onnx.load(path)
            if is_quantized(model):
                return model
        raise


def is_quantized(model: onnx.ModelProto) -> bool:
    """Tell whether any node works on quantized numbers."""
    return any(QUANTIZED.fullmatch(node.op_type) for nodes, _ in scopes(model) for node in nodes)


def parameters(model: onnx.ModelProto) -> int:
    """Return how many numbers the weights hold; shapes and single numbers are no weights."""
    kinds = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    sizes = ((tensor.data_type, prod(tensor.dims)) for _, tensor in constants(model))
    return sum(size for kind, size in sizes if kind in kinds and size > 1)


def port(info: onnx.ValueInfoProto) -> Port:
    """Return name, type and shape of an input or output."""
    tensor = info.type.tensor_type
    shape = tuple(d.dim_value if d.dim_value > 0 else d.dim_param or "?" for d in tensor.shape.dim)
    return Port(info.name, onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), shape)
