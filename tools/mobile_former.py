# SPDX-License-Identifier: Apache-2.0
"""Mobile-Former: a MobileNet and a handful of tokens that exchange what they know at every block.

Source: Chen et al. (CVPR 2022), "Mobile-Former: Bridging MobileNet and Transformer",
arXiv 2108.05895. A block is four steps, each a class of this file:

    MobileToFormer       the tokens look at the features
    Former               the tokens look at each other
    Mobile, MobileDown   convolutions; the first token sets the slopes of their dynamic ReLUs
    FormerToMobile       every place of the features looks at the tokens

Where the text leaves room, this is the network of the published parameter counts: MobileToFormer
has a gate, Former takes the tokens as keys and values as they are, and every dynamic ReLU has a
perceptron of its own.

Shapes: features (N, C, H, W), tokens (N, M, D), one token (N, D); P is H * W.
"""

import torch
from dynamic_relu import DynamicReLU
from mobile_former_sizes import Block, Config
from torch import Tensor, nn

CROSS_HEADS = 2
TOKEN_HEADS = 4


def depthwise(width: int, widen: int, stride: int) -> nn.Sequential:
    """Return a 3x3 convolution of each channel into ``widen`` channels, and its norm."""
    wide = width * widen
    bare = nn.Conv2d(width, wide, 3, stride, 1, groups=width, bias=False)
    return nn.Sequential(bare, nn.BatchNorm2d(wide))


def pointwise(wide_in: int, wide_out: int, groups: int) -> nn.Sequential:
    """Return a 1x1 convolution and its norm."""
    bare = nn.Conv2d(wide_in, wide_out, 1, groups=groups, bias=False)
    return nn.Sequential(bare, nn.BatchNorm2d(wide_out))


class Shuffle(nn.Module):
    """Deals the channels of each group out to all groups."""

    def __init__(self, groups: int) -> None:
        """Deal from ``groups``."""
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Return the shape of ``x``, (N, C, H, W)."""
        n, c, h, w = x.shape
        dealt = x.reshape(n, self.groups, c // self.groups, h, w).transpose(1, 2)
        return dealt.reshape(n, c, h, w)


def shuffle(rows: int, groups: int) -> nn.Module:
    """Return what mixes channels between convolutions of ``groups``."""
    return Shuffle(rows) if groups > 1 else nn.Identity()


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return (N, M, C) as (N, heads, M, C / heads)."""
    n, m, c = x.shape
    return x.reshape(n, m, heads, c // heads).transpose(1, 2)


def split_channels(features: Tensor, heads: int) -> Tensor:
    """Return (N, C, H, W) as (N, heads, C / heads, P)."""
    n, c, h, w = features.shape
    return features.reshape(n, heads, c // heads, h * w)


def merge_heads(x: Tensor) -> Tensor:
    """Return (N, heads, M, C / heads) as (N, M, C)."""
    return x.transpose(1, 2).flatten(2)


class MobileToFormer(nn.Module):
    """Tokens gather from the features, which are keys and values as they are."""

    def __init__(self, width: int, token_width: int) -> None:
        """Project tokens to ``width`` and what they found back."""
        super().__init__()
        self.scale = (width // CROSS_HEADS) ** -0.5
        self.query, self.out = nn.Linear(token_width, width), nn.Linear(width, token_width)
        self.gate = nn.Sequential(nn.Linear(token_width, width), nn.Hardsigmoid())
        self.norm = nn.LayerNorm(token_width)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Return tokens, (N, M, D)."""
        query = split_heads(self.query(tokens), CROSS_HEADS)  # (N, heads, M, C / heads)
        keys = split_channels(features, CROSS_HEADS)  # (N, heads, C / heads, P)
        weights = (query @ keys * self.scale).softmax(dim=-1)  # (N, heads, M, P)
        found = merge_heads(weights @ keys.transpose(-2, -1))  # (N, M, C)
        y: Tensor = self.norm(tokens + self.out(found * (2 * self.gate(tokens))))
        return y


class Former(nn.Module):
    """A post-norm transformer layer over the tokens."""

    def __init__(self, width: int) -> None:
        """Give the perceptron twice the width."""
        super().__init__()
        self.scale = (width // TOKEN_HEADS) ** -0.5
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens, (N, M, D)."""
        query = split_heads(self.query(tokens), TOKEN_HEADS)
        keys = split_heads(tokens, TOKEN_HEADS)  # values too
        weights = (query @ keys.transpose(-2, -1) * self.scale).softmax(dim=-1)  # (N, heads, M, M)
        tokens = self.norm1(tokens + self.out(merge_heads(weights @ keys)))
        y: Tensor = self.norm2(tokens + self.mlp(tokens))
        return y


class FormerToMobile(nn.Module):
    """Every place of the features, as it is, asks the tokens."""

    def __init__(self, width: int, token_width: int) -> None:
        """Project tokens to keys and values of ``width``."""
        super().__init__()
        self.scale = (width // CROSS_HEADS) ** -0.5
        self.key, self.value = nn.Linear(token_width, width), nn.Linear(token_width, width)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Return features, (N, C, H, W)."""
        query = split_channels(features, CROSS_HEADS)  # (N, heads, C / heads, P)
        key = split_heads(self.key(tokens), CROSS_HEADS)  # (N, heads, M, C / heads)
        value = split_heads(self.value(tokens), CROSS_HEADS)
        weights = (query.transpose(-2, -1) @ key.transpose(-2, -1) * self.scale).softmax(dim=-1)
        found: Tensor = (weights @ value).transpose(-2, -1)  # (N, heads, C / heads, P)
        return features + found.reshape(features.shape)


class Mobile(nn.Module):
    """Inverted residual: widen, filter each channel, project; a shortcut where widths allow."""

    def __init__(self, wide_in: int, block: Block, token_width: int, groups: int) -> None:
        """Keep the resolution."""
        super().__init__()
        mid = wide_in * block.widen
        self.shortcut = wide_in == block.width
        self.widen = nn.Sequential(pointwise(wide_in, mid, groups), shuffle(groups, groups))
        self.act1 = DynamicReLU(mid, token_width)
        self.filter = depthwise(mid, 1, 1)
        self.act2 = DynamicReLU(mid, token_width)
        self.project = nn.Sequential(pointwise(mid, block.width, groups), shuffle(groups, groups))

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """Return features, (N, block.width, H, W)."""
        wide = self.act1(self.widen(x), token)
        y: Tensor = self.project(self.act2(self.filter(wide), token))
        return x + y if self.shortcut else y


class DepthFirst(nn.Module):
    """A depthwise convolution that widens, then a pointwise one that projects."""

    def __init__(self, wide_in: int, block: Block, token_width: int, groups: int) -> None:
        """Filter every channel into ``block.widen`` channels."""
        super().__init__()
        self.filter = nn.Sequential(
            depthwise(wide_in, block.widen, block.stride), shuffle(wide_in, groups)
        )
        self.act = DynamicReLU(wide_in * block.widen, token_width)
        self.project = pointwise(wide_in * block.widen, block.width, groups)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """Return features, (N, block.width, H / stride, W / stride)."""
        y: Tensor = self.project(self.act(self.filter(x), token))
        return y


class MobileDown(nn.Module):
    """The Mobile step that halves the resolution: a depth-first pair, then a residual one."""

    def __init__(self, wide_in: int, block: Block, token_width: int, groups: int) -> None:
        """Widen the second pair by four."""
        super().__init__()
        self.down = DepthFirst(wide_in, block, token_width, groups)
        self.same = DepthFirst(block.width, Block(block.width, 4, 1), token_width, groups)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """Return features, (N, block.width, H / 2, W / 2)."""
        y: Tensor = self.down(x, token)
        z: Tensor = y + self.same(y, token)
        return z


class MobileFormerBlock(nn.Module):
    """Tokens look and think, the features are filtered under their eye and look back."""

    def __init__(self, wide_in: int, block: Block, token_width: int, groups: int) -> None:
        """Put the four steps together."""
        super().__init__()
        mobile = Mobile if block.stride == 1 else MobileDown
        self.to_former = MobileToFormer(wide_in, token_width)
        self.former = Former(token_width)
        self.mobile = mobile(wide_in, block, token_width, groups)
        self.to_mobile = FormerToMobile(block.width, token_width)

    def forward(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, block.width, H / stride, W / stride) and tokens (N, M, D)."""
        tokens = self.former(self.to_former(features, tokens))
        features = self.mobile(features, tokens[:, 0])
        return self.to_mobile(features, tokens), tokens


class Lite(nn.Module):
    """The first block: a depth-first pair with ReLU6, before there is anything to tell a token."""

    def __init__(self, wide_in: int, block: Block, groups: int) -> None:
        """Add the input back where shapes allow."""
        super().__init__()
        self.shortcut = block.stride == 1 and wide_in == block.width
        self.body = nn.Sequential(
            depthwise(wide_in, block.widen, block.stride),
            nn.ReLU6(),
            shuffle(wide_in, groups),
            pointwise(wide_in * block.widen, block.width, groups),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features, (N, block.width, H / stride, W / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y


class Head(nn.Module):
    """Pooled features beside the first token, and two linear layers."""

    def __init__(self, width: int, config: Config, classes: int) -> None:
        """Widen the features by six before they are pooled."""
        super().__init__()
        wide = 6 * width
        self.widen = nn.Sequential(
            shuffle(config.groups, config.groups), pointwise(width, wide, config.groups), nn.ReLU6()
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Hardswish(), nn.Flatten())
        self.hidden = nn.Sequential(
            nn.Linear(wide + config.token_width, config.hidden),
            nn.BatchNorm1d(config.hidden),
            nn.Hardswish(),
        )
        self.classify = nn.Linear(config.hidden, classes)

    def forward(self, features: Tensor, token: Tensor) -> Tensor:
        """Return logits, (N, classes)."""
        pooled = self.pool(self.widen(features))
        y: Tensor = self.classify(self.hidden(torch.cat([pooled, token], dim=1)))
        return y


class MobileFormer(nn.Module):
    """The classifier."""

    def __init__(self, config: Config, classes: int = 1000) -> None:
        """Build what ``config`` says."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, config.stem, 3, 2, 1, bias=False), nn.BatchNorm2d(config.stem), nn.ReLU6()
        )
        self.lite = Lite(config.stem, config.lite, config.groups)
        self.tokens = nn.Parameter(torch.randn(1, config.tokens, config.token_width))
        self.blocks = nn.ModuleList()
        width = config.lite.width
        for block in config.blocks:
            self.blocks.append(MobileFormerBlock(width, block, config.token_width, config.groups))
            width = block.width
        self.last = MobileToFormer(width, config.token_width)
        self.head = Head(width, config, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, 3, H, W), both sides multiples of 32."""
        features = self.lite(self.stem(images))
        tokens = self.tokens.expand(images.shape[0], -1, -1)
        for block in self.blocks:
            features, tokens = block(features, tokens)
        y: Tensor = self.head(features, self.last(features, tokens)[:, 0])
        return y
