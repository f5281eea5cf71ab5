"""The demonstration network: a MobileViT small enough to train on a laptop and to keep in git.

Mehta and Rastegari (2022), "MobileViT", section 3, with the widths cut down for 64-pixel pictures.
"""

import torch
from torch import Tensor, nn

SIDE, CLASSES = 64, 10


def norm_act(width: int) -> nn.Sequential:
    """Return what follows every convolution except a linear projection."""
    return nn.Sequential(nn.BatchNorm2d(width), nn.SiLU())


def conv(wide_in: int, wide_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return convolution, batch normalisation and SiLU."""
    bare = nn.Conv2d(wide_in, wide_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(bare, norm_act(wide_out))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen, filter each channel, project; a shortcut where shapes allow."""

    def __init__(self, wide_in: int, wide_out: int, stride: int) -> None:
        """Widen by three, as much as 64-pixel pictures need."""
        super().__init__()
        mid = 3 * wide_in
        self.shortcut = stride == 1 and wide_in == wide_out
        self.body = nn.Sequential(
            conv(wide_in, mid, 1),
            nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False),
            norm_act(mid),
            nn.Conv2d(mid, wide_out, 1, bias=False),
            nn.BatchNorm2d(wide_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, wide_out, H / stride, W / stride]."""
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y


class Attention(nn.Module):
    """Softmax attention over the tokens of [N, T, C]."""

    def __init__(self, width: int, heads: int) -> None:
        """Split ``width`` evenly over ``heads``."""
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, T, C]."""
        n, t, c = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [N, heads, T, C / heads]
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        y: Tensor = self.out((weights @ v).transpose(1, 2).reshape(n, t, c))
        return y


class Encoder(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        """Give the perceptron twice the width, as MobileViT does."""
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, T, C]."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class MobileViTBlock(nn.Module):
    """Local convolution, attention between equal places of all 2x2 patches, fusion."""

    def __init__(self, channels: int, width: int, heads: int) -> None:
        """Attend in ``width`` channels and come back to ``channels``."""
        super().__init__()
        self.local = nn.Sequential(
            conv(channels, channels, 3), nn.Conv2d(channels, width, 1, bias=False)
        )
        self.layers = nn.Sequential(Encoder(width, heads), Encoder(width, heads))
        self.norm = nn.LayerNorm(width)
        self.project = conv(width, channels, 1)
        self.fuse = conv(2 * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the shape of ``x``."""
        y = self.local(x)
        n, c, h, w = y.shape
        y = y.reshape(n * c * (h // 2), 2, w // 2, 2).transpose(1, 2)  # rows of patches
        y = y.reshape(n, c, (h // 2) * (w // 2), 4).transpose(1, 3)  # [N, 4, patches, C]
        y = self.norm(self.layers(y.reshape(n * 4, (h // 2) * (w // 2), c)))
        y = y.reshape(n, 4, (h // 2) * (w // 2), c).transpose(1, 3)
        y = y.reshape(n * c * (h // 2), w // 2, 2, 2).transpose(1, 2).reshape(n, c, h, w)
        z: Tensor = self.fuse(torch.cat([x, self.project(y)], dim=1))
        return z


def build() -> nn.Sequential:
    """Return the untrained classifier, [N, 3, 64, 64] to [N, 10]."""
    return nn.Sequential(
        conv(3, 16, 3, 2),
        InvertedResidual(16, 16, 1),
        InvertedResidual(16, 32, 2),
        InvertedResidual(32, 32, 1),
        MobileViTBlock(32, 48, 4),
        InvertedResidual(32, 64, 2),
        MobileViTBlock(64, 80, 4),
        conv(64, 160, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(160, CLASSES),
    )
