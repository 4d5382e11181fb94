"""Blocks of LLIC's transforms: non-linear embedding, self-conditioned convolutions and factors, gates.

    u = DepthRB(x),  v = x + W_o T(u),  out = v + gate(v)

T is a depth-wise K x K convolution whose kernels are computed from u (spatial block), or one factor for each channel
that is computed from u (channel block). The paper's body is not public in what this was written from: the weight
generator, the initialisation and the residuals are a reconstruction, see README.md.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Generator = Literal["pooled", "grid", "delta", "static"]
"""What makes the depth-wise kernels; see `config.TransformSettings.generator`."""
_REDUCTION = 4
_SMALL = 0.01
"""What last weights are multiplied by at the start: training begins near static convolutions, and near the identity."""


def squeezed(channels: int) -> int:
    """Return the width of a generator's hidden layer, C / 4, at least 1."""
    return max(channels // _REDUCTION, 1)


def grouped(u: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each channel of each image with a kernel of its own: one grouped convolution over b C groups.

    Args:
        u: features, (b, C, h, w).
        kernels: (b, C, K, K), K odd.
    """
    b, c, h, w = u.shape
    k = kernels.shape[-1]
    flat = F.conv2d(u.reshape(1, b * c, h, w), kernels.reshape(b * c, 1, k, k), padding=k // 2, groups=b * c)
    return flat.reshape(b, c, h, w)


class KernelGenerator(nn.Module):
    """Makes a K x K kernel for each channel of each image from pooled features.

    Args:
        channels: C.
        kernel: K, odd.
        kind: `pooled`: global average pooling, C -> C/4 -> C K^2; `grid`: average pooling to K x K, two 1 x 1
            convolutions, the map is the kernel; `delta`: a learned kernel plus a `grid`; `static`: a learned kernel.
    """

    def __init__(self, channels: int, kernel: int, kind: Generator) -> None:
        super().__init__()
        self.channels, self.kernel, self.kind = channels, kernel, kind
        hidden = squeezed(channels)
        bound = 1.0 / kernel  # of a depth-wise convolution: 1 / sqrt(fan-in)
        if kind in ("static", "delta"):
            self.base = nn.Parameter(torch.empty(channels, kernel, kernel).uniform_(-bound, bound))
        if kind != "static":
            outputs = channels * kernel**2 if kind == "pooled" else channels
            self.squeeze = nn.Conv2d(channels, hidden, 1)
            self.expand = nn.Conv2d(hidden, outputs, 1)
            if kind != "grid":
                with torch.no_grad():
                    self.expand.weight.mul_(_SMALL)
            bias = [each for name, each in self.expand.named_parameters() if name == "bias"]
            nn.init.uniform_(bias[0], -bound, bound) if kind == "pooled" else nn.init.zeros_(bias[0])

    def forward(self, u: Tensor) -> Tensor:
        """Return the kernels of features (b, C, h, w), (b, C, K, K)."""
        b, c, _, _ = u.shape
        k = self.kernel
        if self.kind == "static":
            return self.base.expand(b, c, k, k)
        pooled = u.mean((2, 3), keepdim=True) if self.kind == "pooled" else F.adaptive_avg_pool2d(u, k)
        made: Tensor = self.expand(F.gelu(self.squeeze(pooled)))
        if self.kind == "pooled":
            return made.reshape(b, c, k, k)
        return made + self.base if self.kind == "delta" else made


class SpatialTransform(nn.Module):
    """The self-conditioned depth-wise convolution (SCST).

    `replacement` puts other kernels in place of the generated ones, for measurements.
    """

    def __init__(self, channels: int, kernel: int, kind: Generator) -> None:
        super().__init__()
        self.generator = KernelGenerator(channels, kernel, kind)
        self.detached = False
        """Whether no gradient passes through the generator."""
        self.replacement: Tensor | None = None
        self.kernels: Tensor | None = None
        """The kernels of the last call, without gradient, if `remember`."""
        self.remember = False

    def forward(self, u: Tensor) -> Tensor:
        """Transform features (b, C, h, w)."""
        kernels = self.generator(u.detach() if self.detached else u) if self.replacement is None else self.replacement
        if self.remember:
            self.kernels = kernels.detach().clone()
        return grouped(u, kernels.expand(len(u), -1, -1, -1))


class ChannelTransform(nn.Module):
    """The self-conditioned factors of channels (SCCT): f = sigmoid(W_2 GELU(W_1 GAP(u))), out = f u."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = squeezed(channels)
        self.squeeze, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.detached = False
        """Whether no gradient passes through the factors."""
        self.factors: Tensor | None = None
        """The factors of the last call, (b, C), without gradient, if `remember`."""
        self.remember = False

    def forward(self, u: Tensor) -> Tensor:
        """Scale the channels of features (b, C, h, w)."""
        pooled = (u.detach() if self.detached else u).mean((2, 3), keepdim=True)
        factors = torch.sigmoid(self.expand(F.gelu(self.squeeze(pooled))))
        if self.remember:
            self.factors = factors.detach().flatten(1).clone()
        return u * factors


class Embedding(nn.Module):
    """The residual embedding DepthRB: 1 x 1, 3 x 3 depth-wise, 1 x 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, channels, 1)
        self.depth = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Embed features (b, C, h, w)."""
        inner = F.leaky_relu(self.depth(F.leaky_relu(self.enter(x))))
        embedded: Tensor = x + self.leave(inner)
        return embedded


class Gate(nn.Module):
    """The gate in place of a feed-forward layer: C -> 2 C, one half times the other, C -> C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand, self.project = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated features of (b, C, h, w), without the residual."""
        one, other = self.expand(x).chunk(2, 1)
        gated: Tensor = self.project(F.gelu(one) * other)
        return gated


class TransformBlock(nn.Module):
    """Embedding, a transform of space or channels, gate.

    Args:
        channels: C.
        transform: T; None leaves it out.
        gated: whether the gate is there.
    """

    def __init__(self, channels: int, transform: nn.Module | None, *, gated: bool = True) -> None:
        super().__init__()
        self.embedding = Embedding(channels)
        self.transform = transform
        self.output = nn.Conv2d(channels, channels, 1)
        self.gate = Gate(channels) if gated else None
        last = [self.embedding.leave, self.output, *([] if self.gate is None else [self.gate.project])]
        with torch.no_grad():  # blocks begin near the identity: without normalisation deep ones explode otherwise
            for layer in last:
                layer.weight.mul_(_SMALL)

    def forward(self, x: Tensor) -> Tensor:
        """Transform features (b, C, h, w)."""
        u = self.embedding(x)
        v: Tensor = x + self.output(u if self.transform is None else self.transform(u))
        return v if self.gate is None else v + self.gate(v)
