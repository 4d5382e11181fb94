"""Steps between resolutions that several transforms share: strided and sub-pixel convolutions, residual units."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads.llic.normalisation import GDN


def strided(inputs: int, outputs: int, kernel: int = 5) -> nn.Conv2d:
    """Return a convolution that halves the resolution."""
    return nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2)


def transposed(inputs: int, outputs: int, kernel: int = 5) -> nn.ConvTranspose2d:
    """Return a transposed convolution that doubles the resolution."""
    return nn.ConvTranspose2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, output_padding=1)


def sub_pixel(inputs: int, outputs: int, factor: int = 2, kernel: int = 3) -> nn.Sequential:
    """Return a convolution whose channels become the pixels of a finer grid."""
    return nn.Sequential(nn.Conv2d(inputs, outputs * factor**2, kernel, padding=kernel // 2), nn.PixelShuffle(factor))


class ResidualDown(nn.Module):
    """3 x 3 with stride 2, activation, 3 x 3, GDN, plus a 1 x 1 convolution with stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = strided(inputs, outputs, 3), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm, self.skip = GDN(outputs), nn.Conv2d(inputs, outputs, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return features at half the resolution."""
        down: Tensor = self.norm(self.second(F.gelu(self.first(x)))) + self.skip(x)
        return down


class ResidualUp(nn.Module):
    """Sub-pixel 3 x 3, activation, 3 x 3, inverse GDN, plus a 1 x 1 sub-pixel convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = sub_pixel(inputs, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm, self.skip = GDN(outputs, inverse=True), sub_pixel(inputs, outputs, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return features at twice the resolution."""
        up: Tensor = self.norm(self.second(F.gelu(self.first(x)))) + self.skip(x)
        return up


class Bottleneck(nn.Module):
    """The residual unit of ELIC and of attention blocks: 1 x 1 to half, 3 x 3, 1 x 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = max(channels // 2, 1)
        self.enter, self.middle = nn.Conv2d(channels, half, 1), nn.Conv2d(half, half, 3, padding=1)
        self.leave = nn.Conv2d(half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Add the unit's output to features (b, C, h, w)."""
        out: Tensor = x + self.leave(F.relu(self.middle(F.relu(self.enter(x)))))
        return out


class Attention(nn.Module):
    """x + a(x) sigmoid(b(x)), a and b of three residual units each (Cheng et al. 2020); `inner` comes before b."""

    def __init__(self, channels: int, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.value = nn.Sequential(*(Bottleneck(channels) for _ in range(3)))
        parts = [] if inner is None else [inner]
        self.mask = nn.Sequential(*parts, *(Bottleneck(channels) for _ in range(3)), nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Weigh features (b, C, h, w) by place."""
        out: Tensor = x + self.value(x) * self.mask(x).sigmoid()
        return out
