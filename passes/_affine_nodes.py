# SPDX-License-Identifier: Apache-2.0
"""A scale and offset per channel as nodes of their own, where no constant can take them over."""

import numpy as np
from numpy.typing import NDArray

from qhyvit_onnx.graph import Graph, Tensor, constant, fresh, make_node, variable
from qhyvit_onnx.kernels.norms import Affine


def write_affine(
    graph: Graph,
    data: Tensor,
    out: Tensor,
    affine: Affine,
    *,
    axis: int,
    stem: str,
    taken: set[str],
) -> None:
    """Compute ``out`` from ``data`` by one Mul and one Add; tidy sorts them to their place."""
    inner = variable(_claimed(f"{out.name}.scaled", taken), out)
    for op, values, left, right in (
        ("Mul", affine.gain, data, inner),
        ("Add", affine.offset, inner, out),
    ):
        name = _claimed(f"{stem}.{op.lower()}", taken)
        array = lying(values, axis, len(out.shape)).astype(out.dtype or np.float32)
        held = constant(_claimed(f"{name}.constant", taken), array)
        graph.nodes.append(make_node(op, name, [left, held], [right]))


def lying(values: NDArray[np.float64], axis: int, rank: int) -> NDArray[np.float64]:
    """Return one number a channel as an array of ``rank`` dims, along ``axis``."""
    shape = [1] * rank
    shape[axis - rank] = values.size
    return values.reshape(shape)


def _claimed(wanted: str, taken: set[str]) -> str:
    name = fresh(wanted, taken)
    taken.add(name)
    return name
