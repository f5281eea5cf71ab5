# SPDX-License-Identifier: Apache-2.0
"""Blocks of pixels against channels: DepthToSpace, SpaceToDepth, Col2Im without overlap."""

from collections.abc import Iterator, Sequence

from qhyvit_onnx.layout.site import Path, Refusal, Site
from qhyvit_onnx.layout.steps import Permute, Regroup
from qhyvit_onnx.symbolic.dims import Dim, quotient


def depth_to_space(site: Site) -> Iterator[Path]:
    """DepthToSpace-13: (N, C*b*b, H, W) -> (N, C, H*b, W*b), both modes."""
    n, depth, h, w = _four(site)
    block = int(site.attr("blocksize"))
    c = _whole(depth, block * block)
    if site.attr("mode", "DCR") == "DCR":
        split, order = (n, block, block, c, h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, order = (n, c, block, block, h, w), (0, 1, 4, 2, 5, 3)
    yield 0, 0, (Regroup(split), Permute(order), Regroup((n, c, h * block, w * block)))


def space_to_depth(site: Site) -> Iterator[Path]:
    """SpaceToDepth-13: (N, C, H*b, W*b) -> (N, b*b*C, H, W)."""
    n, c, high, wide = _four(site)
    block = int(site.attr("blocksize"))
    h, w = _whole(high, block), _whole(wide, block)
    split, order = (n, c, h, block, w, block), (0, 3, 5, 1, 2, 4)
    yield 0, 0, (Regroup(split), Permute(order), Regroup((n, block * block * c, h, w)))


def col2im(site: Site) -> Iterator[Path]:
    """Col2Im-18 whose blocks tile the image: (N, C*b0*b1..., L) -> (N, C, h0*b0, h1*b1, ...)."""
    image, block = site.needed(1, "image_shape"), site.needed(2, "block_shape")
    _tiles(site, block)
    counts = [_whole(size, edge) for size, edge in zip(image, block, strict=True)]
    n, columns, _ = site.source()
    channels = columns
    for edge in block:
        channels = _whole(channels, edge)
    rank = len(block)
    pairs = [axis for k in range(rank) for axis in (2 + rank + k, 2 + k)]  # block k before pixel k
    yield (
        0,
        0,
        (
            Regroup((n, channels, *block, *counts)),
            Permute((0, 1, *pairs)),
            Regroup((n, channels, *image)),
        ),
    )


def _tiles(site: Site, block: Sequence[Dim]) -> None:
    """Refuse blocks that overlap, leave gaps or hang over the border: sums, no permutation."""
    rank = len(block)
    strides = list(site.attr("strides") or [1] * rank)
    if strides != list(block):
        raise Refusal("blocks overlap or leave gaps")
    if any(site.attr("pads") or ()):
        raise Refusal("blocks hang over the border")
    if any(gap != 1 for gap in site.attr("dilations") or ()):
        raise Refusal("blocks are dilated")


def _four(site: Site) -> tuple[Dim, Dim, Dim, Dim]:
    shape = site.source()
    if len(shape) != 4:
        raise Refusal(f"rank {len(shape)}")
    n, c, h, w = shape
    return n, c, h, w


def _whole(size: Dim, divisor: Dim) -> Dim:
    found = quotient(size, divisor)
    if found is None:
        raise Refusal(f"{size} is no multiple of {divisor}")
    return found
