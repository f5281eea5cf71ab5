# SPDX-License-Identifier: Apache-2.0
"""The seven published sizes of Mobile-Former, as data.

Source: Chen et al. (CVPR 2022), arXiv 2108.05895; the figure in a name is millions of multiply-adds
for a picture of ``SIDE`` pixels.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

SIDE = 224


class Block(NamedTuple):
    """One block: output channels, widening of the input, stride of 1 or 2."""

    width: int
    widen: int
    stride: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One size of the network."""

    stem: int
    """Channels after the first convolution."""

    lite: Block
    """The one block without tokens."""

    blocks: tuple[Block, ...]
    tokens: int
    token_width: int
    hidden: int
    """Width of the classifier's hidden layer."""

    groups: int = 1
    """Groups of the pointwise convolutions."""


B = Block
SMALL = Config(
    stem=8, lite=B(12, 3, 2), tokens=3, token_width=128, hidden=1024,
    blocks=(B(12, 3, 1),
            B(24, 6, 2), B(24, 3, 1),
            B(48, 6, 2), B(48, 4, 1), B(64, 6, 1),
            B(96, 6, 2), B(96, 6, 1)),
)  # fmt: skip
CONFIGS = {
    "mobile_former_26m": replace(SMALL, groups=4),
    "mobile_former_52m": SMALL,
    "mobile_former_96m": Config(
        stem=12, lite=B(12, 2, 1), tokens=4, token_width=128, hidden=1280,
        blocks=(B(16, 6, 2),
                B(32, 6, 2), B(32, 3, 1),
                B(64, 6, 2), B(64, 4, 1), B(88, 6, 1),
                B(128, 6, 2), B(128, 6, 1)),
    ),
    "mobile_former_151m": Config(
        stem=12, lite=B(12, 2, 1), tokens=6, token_width=192, hidden=1280,
        blocks=(B(16, 6, 2), B(16, 3, 1),
                B(32, 6, 2), B(32, 3, 1),
                B(64, 6, 2), B(64, 4, 1), B(88, 6, 1), B(88, 6, 1),
                B(128, 6, 2), B(128, 6, 1), B(128, 6, 1)),
    ),
    "mobile_former_214m": Config(
        stem=12, lite=B(12, 2, 1), tokens=6, token_width=192, hidden=1600,
        blocks=(B(20, 6, 2), B(20, 3, 1),
                B(40, 6, 2), B(40, 4, 1),
                B(80, 6, 2), B(80, 4, 1), B(112, 6, 1), B(112, 6, 1),
                B(160, 6, 2), B(160, 6, 1), B(160, 6, 1)),
    ),
    "mobile_former_294m": Config(
        stem=16, lite=B(16, 2, 1), tokens=6, token_width=192, hidden=1920,
        blocks=(B(24, 6, 2), B(24, 4, 1),
                B(48, 6, 2), B(48, 4, 1),
                B(96, 6, 2), B(96, 4, 1), B(128, 6, 1), B(128, 6, 1),
                B(192, 6, 2), B(192, 6, 1), B(192, 6, 1)),
    ),
    "mobile_former_508m": Config(
        stem=24, lite=B(24, 2, 1), tokens=6, token_width=192, hidden=1920,
        blocks=(B(40, 6, 2), B(40, 3, 1),
                B(72, 6, 2), B(72, 3, 1),
                B(128, 6, 2), B(128, 4, 1), B(176, 6, 1), B(176, 6, 1),
                B(240, 6, 2), B(240, 6, 1), B(240, 6, 1)),
    ),
}  # fmt: skip
