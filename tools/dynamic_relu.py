# SPDX-License-Identifier: Apache-2.0
"""Dynamic ReLU as Mobile-Former uses it: a token bends the activation of every channel.

y = max((1 + d1) x, d2 x), with d1 and d2 in [-1, 1], one pair a channel and a picture; where both
are 0 this is ReLU.

Source: Chen et al. (ECCV 2020), "Dynamic ReLU", arXiv 2003.10027, with two lines, both through the
origin, and a token of Mobile-Former (arXiv 2108.05895) in place of pooled features.
"""

import torch
from torch import Tensor, nn


class DynamicReLU(nn.Module):
    """The larger of two lines through the origin, whose slopes a token sets for each channel."""

    def __init__(self, width: int, token_width: int) -> None:
        """Ask through two layers, the first four times narrower than the token."""
        super().__init__()
        narrow = token_width // 4
        self.ask = nn.Sequential(
            nn.Linear(token_width, narrow), nn.ReLU(), nn.Linear(narrow, 2 * width)
        )
        self.bound = nn.Hardsigmoid()

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """Return the shape of ``x``, (N, C, H, W)."""
        steps = 2 * self.bound(self.ask(token)) - 1  # (N, 2 C)
        first, second = steps[..., None, None].chunk(2, dim=1)  # each (N, C, 1, 1)
        return torch.maximum(x * (first + 1), x * second)
