# SPDX-License-Identifier: Apache-2.0
"""Relu and Clip read as bounds: what integer kernels fold into the range of their codes."""

from qhyvit_onnx.graph import Node, operand, scalar


def bounds_of(node: Node) -> tuple[float, float] | None:
    """Return the bounds that ``node`` puts on its first input; None when it computes another thing.

    Bounds that are computed at run time are none. Source: ONNX Relu-14, Clip-13.
    """
    if node.op == "Relu":
        return 0.0, float("inf")
    if node.op != "Clip":
        return None
    low, high = (_bound(node, index, open_) for index, open_ in ((1, "-inf"), (2, "inf")))
    return None if low is None or high is None else (low, high)


def _bound(node: Node, index: int, unbounded: str) -> float | None:
    given = operand(node, index)
    return float(unbounded) if given is None else scalar(given)
