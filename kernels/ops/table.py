# SPDX-License-Identifier: Apache-2.0
"""A kernel is a value: an ONNX op, the opset it holds from, and the torch function that runs it."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

Result: TypeAlias = Tensor | tuple[Tensor, ...]
KernelFn: TypeAlias = Callable[..., Any]
"""Inputs by position (None: absent), attributes by keyword; returns a Result."""

OUTPUTS = "outputs"
"""Keyword of a kernel that must know how many outputs the node names."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """How to run ``op`` from opset ``since`` on, until a newer kernel of the op takes over."""

    op: str
    since: int
    run: KernelFn
    attributes: frozenset[str] = frozenset()
    """Keywords that ``run`` takes."""
    host: frozenset[int] = frozenset()
    """Inputs read as Python numbers (shapes, axes, sizes): never worth a trip to an accelerator."""


def kernel(op: str, *, since: int, host: Iterable[int] = ()) -> Callable[[KernelFn], Kernel]:
    """Turn a function into a Kernel value; registering it is the table's business."""

    def decorate(run: KernelFn) -> Kernel:
        given = inspect.signature(run).parameters.values()
        keywords = frozenset(p.name for p in given if p.kind is p.KEYWORD_ONLY)
        return Kernel(op, since, run, keywords, frozenset(host))

    return decorate


class KernelTable:
    """Every kernel there is, by op."""

    def __init__(self, kernels: Iterable[Kernel]) -> None:
        """Sort the kernels; ValueError when two hold for one op from the same opset."""
        self._by_op: dict[str, dict[int, Kernel]] = {}
        for item in kernels:
            versions = self._by_op.setdefault(item.op, {})
            if item.since in versions:
                raise ValueError(f"two kernels of {item.op} since opset {item.since}")
            versions[item.since] = item

    def find(self, op: str, opset: int) -> Kernel | None:
        """Return the newest kernel of ``op`` that is not newer than ``opset``; None without one."""
        versions = self._by_op.get(op, {})
        since = max((version for version in versions if version <= opset), default=None)
        return None if since is None else versions[since]

    def versions(self) -> dict[str, list[int]]:
        """Return, for each op in order, the opsets at which its kernels begin."""
        return {op: sorted(self._by_op[op]) for op in sorted(self._by_op)}
