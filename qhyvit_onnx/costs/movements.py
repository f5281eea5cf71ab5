# SPDX-License-Identifier: Apache-2.0
"""What hybrids do to the order of elements, as patterns that keep the shape they start from.

A norm ends each: onnxruntime merges neighbouring views and takes Transposes past much else.
"""

from collections.abc import Callable

from qhyvit_onnx.costs.chain import Chain

WIDTH = 64
"""Of the tokens that ``patches`` starts from."""

_HEADS = 4
_EDGE = 2
"""Of a patch."""


def heads(chain: Chain) -> None:
    """Split tokens (1, count, width) into heads."""
    one, count, width = chain.value.shape
    chain.reshape(one, count, _HEADS, width // _HEADS)
    chain.transpose(0, 2, 1, 3)
    chain.reshape(one, count, width)
    chain.norm()


def views(chain: Chain) -> None:
    """Change the shape of tokens (1, count, width) alone, and back."""
    one, count, width = chain.value.shape
    for shape in ((one, 1, count, width), (one, count, width)):
        chain.reshape(*shape)
        chain.norm()


def patches(channels: int, edge: int) -> Callable[[Chain], None]:
    """Return what takes a map apart into patches, as MobileViT does, and joins them.

    The map is (1, channels, edge, edge). Where the pattern starts, its elements are tokens (1,
    count, WIDTH): as such, all norms take them.
    """
    rows, half, size = channels * edge // _EDGE, edge // _EDGE, _EDGE * _EDGE
    tokens = (1, channels * edge * edge // WIDTH, WIDTH)

    def pattern(chain: Chain) -> None:
        chain.reshape(rows, _EDGE, half, _EDGE)
        chain.transpose(0, 2, 1, 3)
        chain.reshape(1, channels, half * half, size)
        chain.transpose(0, 3, 2, 1)
        chain.reshape(*tokens)
        chain.norm()
        chain.reshape(1, size, half * half, channels)
        chain.transpose(0, 3, 2, 1)
        chain.reshape(rows, half, _EDGE, _EDGE)
        chain.transpose(0, 2, 1, 3)
        chain.reshape(*tokens)
        chain.norm()

    return pattern
