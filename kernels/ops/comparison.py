# SPDX-License-Identifier: Apache-2.0
"""Questions asked of every element, and the choice between two tensors by the answers."""

import torch
from torch import Tensor

from qhyvit_onnx.kernels.ops.table import Kernel, kernel


@kernel("IsInf", since=10)
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Tell which elements are infinite, of the signs asked for."""
    found = torch.isinf(x)
    if not detect_negative:
        found = found & (x > 0)
    return found if detect_positive else found & (x < 0)


KERNELS = (
    Kernel("And", 7, torch.logical_and),
    Kernel("Equal", 7, torch.eq),
    Kernel("Greater", 7, torch.gt),
    Kernel("GreaterOrEqual", 12, torch.ge),
    Kernel("IsNaN", 9, torch.isnan),
    Kernel("Less", 7, torch.lt),
    Kernel("LessOrEqual", 12, torch.le),
    Kernel("Not", 1, torch.logical_not),
    Kernel("Or", 7, torch.logical_or),
    Kernel("Where", 9, torch.where),
    Kernel("Xor", 7, torch.logical_xor),
    is_inf,
)
