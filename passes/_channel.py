# SPDX-License-Identifier: Apache-2.0
"""Prove that an axis stays whole across Reshape and Transpose."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from qhyvit_onnx.graph import Node

Written: TypeAlias = Sequence[int | str | None]
"""Dims as graphsurgeon has them."""


def axis_above(node: Node, axis: int) -> int | None:
    """Return the input axis of which ``axis`` of the output is an exact copy, or None.

    A reshape keeps the order of the elements. Two axes of the same size hold the same values when
    as many elements lie behind one index of either, or when as many lie before both.
    """
    if node.op == "Transpose":
        perm = node.attrs.get("perm")
        return None if perm is None else int(perm[axis])
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if before is None or after is None or not isinstance(after[axis], int):
        return None
    for candidate, size in enumerate(before):
        if size != after[axis]:
            continue
        behind = _equal(before[candidate + 1 :], after[axis + 1 :])
        if behind or _equal(before[:candidate], after[:axis]):
            return candidate
    return None


def _equal(first: Written, second: Written) -> bool:
    """Tell whether two lists of dims surely have the same product."""
    if None in first or None in second:
        return False
    return _factors(first) == _factors(second)


def _factors(dims: Written) -> tuple[int, Counter[str]]:
    number = 1
    for dim in dims:
        number *= dim if isinstance(dim, int) else 1
    return number, Counter(dim for dim in dims if isinstance(dim, str))
