# SPDX-License-Identifier: Apache-2.0
"""Slices of an axis whose size may be a free dim.

Source:
    ONNX Slice-13: a negative start or end counts from the end of the axis; then start is clamped to
    [0, size] for a positive step and to [0, size - 1] for a negative one, end to [0, size] and to
    [-1, size - 1].
"""

from qhyvit_onnx.symbolic.dims import Dim, is_negative, is_number, not_negative, settled

FAR = 2**31 - 1
"""From here on a start or an end means as far as the axis goes."""


def first_index(start: Dim, step: int, size: Dim) -> Dim | None:
    """Return the first index that a slice takes, None where that depends on free dims.

    A start past the end takes nothing, so any answer is right for it.
    """
    if is_negative(start):
        start = settled(start + size)
    if not not_negative(start):
        return 0 if is_negative(start) else None
    if step > 0 or not_negative(size - 1 - start):
        return start
    return settled(size - 1) if _is_past(start, size) else None


def length(start: Dim, end: Dim, step: int, size: Dim) -> Dim | None:
    """Return how many indices a slice takes; None where that is unsure, and where it skips some."""
    first = first_index(start, step, size)
    if first is None or abs(step) != 1:
        return None
    if step < 0:
        return settled(first + 1) if is_number(end) and end <= -FAR else None
    if is_negative(end):
        end = settled(end + size)
    elif _is_past(end, size):
        end = size
    taken = settled(end - first)
    return taken if not_negative(taken) and not_negative(size - end) else None


def _is_past(index: Dim, size: Dim) -> bool:
    return not_negative(index - size) or (is_number(index) and index >= FAR)
