# SPDX-License-Identifier: Apache-2.0
"""Elements drawn at random that keep one value instead of another.

Source:
    Wei et al. (2022), "QDrop: randomly dropping quantization for extremely low-bit post-training
    quantization", arXiv 2203.05740, eq. 11.
"""

import torch
from torch import Tensor

LEVELS = 256
"""Shares are counted in so many parts: one random byte an element decides."""


def random_mask(x: Tensor, share: float) -> Tensor:
    """Return a mask that is true for about ``share`` of the elements, in the shape of x."""
    words = torch.randint(-(1 << 63), (1 << 63) - 1, (x.numel() // 8 + 1,), device=x.device)
    picked = words.view(torch.uint8)[: x.numel()] < min(round(share * LEVELS), LEVELS - 1)
    return picked.reshape(x.shape)


def mixed(x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Return ``other`` where ``mask`` is true and x elsewhere, without a gradient.

    It is ``torch.where(mask, other, x)`` done on bits, which a CPU does several times as fast.
    """
    words = _WORDS[x.element_size()]
    bits = x.detach().view(words)
    changed = (bits ^ other.detach().view(words)).bitwise_and_(mask.to(words).neg_())
    return changed.bitwise_xor_(bits).view(x.dtype)


_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes an element."""
