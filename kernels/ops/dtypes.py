# SPDX-License-Identifier: Apache-2.0
"""Element types: ONNX's numbers for them, and the way between numpy arrays and torch tensors."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhyvit_onnx.errors import ModelError

TORCH_DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
}
"""By TensorProto.DataType. Left out: strings, complex numbers, floats and integers below 8 bits,
and 8-bit floats, whose rounding modes torch does not have."""


def torch_dtype(elem: int) -> torch.dtype:
    """Return the torch type of an ONNX element type; ModelError when there is none."""
    if elem not in TORCH_DTYPES:
        raise ModelError(f"no kernel computes on ONNX element type {elem}")
    return TORCH_DTYPES[elem]


def tensor_of(array: NDArray[np.generic], name: str = "") -> Tensor:
    """Return a tensor on the CPU; it may share memory with ``array``.

    Raises:
        ModelError: torch has no such element type; ``name`` says which tensor it is.

    """
    array = np.asarray(array)  # a numpy scalar is an array too
    if not (array.flags.writeable and array.flags.c_contiguous):
        array = array.copy()  # torch warns about read-only memory and refuses negative strides
    try:
        if array.dtype.name == "bfloat16":  # numpy knows it through an extension type only
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
    except TypeError as error:
        raise ModelError(f"no kernel computes on {array.dtype} (tensor {name!r})") from error


def array_of(tensor: Tensor, name: str = "") -> NDArray[np.generic]:
    """Return a numpy array, without history; ModelError when numpy has no such element type."""
    try:
        array: NDArray[np.generic] = tensor.detach().cpu().numpy()
    except TypeError as error:
        raise ModelError(f"numpy has no {tensor.dtype} (tensor {name!r})") from error
    return array
