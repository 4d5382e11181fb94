"""Normalising flows: ln p(x) = ln N(f(x); 0, I) + ln |det df/dx|, f from data to noise (RealNVP, Glow, MAF)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.core.errors import ConfigError
from fedloom.workloads.generative.member import Batch, Form, Member
from fedloom.workloads.generative.nets import MaskedMlp, mlp
from fedloom.workloads.generative.noise import Noise

_EDGE = 0.05
"""alpha of the logit transform: y is squeezed to alpha/2 .. 1 - alpha/2 (Dinh et al. 2017, section 4.1, with 0.05)."""
_MOST_LOG_SCALE = 2.0
"""Bound of a coupling's log-scale, by tanh."""


class Transform(nn.Module, ABC):
    """A bijection of vectors (b, D)."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image z of x, (b, D), and ln |det dz/dx|, (b,)."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Return the x whose image is z, (b, D)."""


class Composite(Transform):
    """Transforms one after another; log-determinants add up.

    Args:
        parts: in the order from data to noise.
    """

    def __init__(self, parts: Sequence[Transform]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for part in self.parts:
            x, log_det = part(x)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor) -> Tensor:
        for part in reversed(self.parts):
            z = part.inverse(z)  # type: ignore[operator]
        return z


class Coupling(Transform):
    """Affine coupling: z_a = x_a, z_b = x_b exp(s(x_a)) + t(x_a); ln |det| = sum s (Dinh et al. 2017).

    Args:
        mask: 1 for the entries a, which stay, (D,).
        hidden: units of each hidden layer.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, hidden: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mask", mask.float(), persistent=False)
        self.net = mlp(len(mask), hidden, 2 * len(mask), zero_last=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._of(x)
        return x * s.exp() + t, s.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        s, t = self._of(z)
        return (z - t) * (-s).exp()

    def _of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.net(x * self.mask).chunk(2, 1)
        moved = 1.0 - self.mask
        return _MOST_LOG_SCALE * torch.tanh(s / _MOST_LOG_SCALE) * moved, t * moved


class MaskedAffine(Transform):
    """Masked autoregressive flow's layer: z_i = (x_i - m_i(x_{<i})) exp(-a_i(x_{<i})) (Papamakarios et al. 2017).

    The density takes one pass; the inverse one for each entry.

    Args:
        dims: entries D.
        hidden: units of each hidden layer.
        reverse: whether the last entry is the first in the order.
    """

    def __init__(self, dims: int, hidden: Sequence[int], *, reverse: bool) -> None:
        super().__init__()
        self._order = range(dims - 1, -1, -1) if reverse else range(dims)
        self.net = MaskedMlp(dims, hidden, 2, reverse=reverse)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        m, a = self._of(x)
        return (x - m) * (-a).exp(), -a.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        x = torch.zeros_like(z)
        for place in self._order:
            m, a = self._of(x)
            x[:, place] = z[:, place] * a[:, place].exp() + m[:, place]
        return x

    def _of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        m, a = self.net(x).unbind(2)
        return m, _MOST_LOG_SCALE * torch.tanh(a / _MOST_LOG_SCALE)


class GlowStep(Transform):
    """A step of Glow (Kingma and Dhariwal 2018) on channels: scale and shift, 1 x 1 convolution, affine coupling.

    ln |det| of the convolution is h w ln |det W|. Scale and shift start at 1 and 0, not from a first minibatch, so that
    clients start from the same model.

    Args:
        channels: channels, even.
        height: height of the image.
        width: width of the image.
        hidden: channels of the coupling's hidden layer.
    """

    def __init__(self, channels: int, height: int, width: int, hidden: int) -> None:
        super().__init__()
        self._shape = (channels, height, width)
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.mixing = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0].contiguous())
        self.net = nn.Sequential(
            nn.Conv2d(channels // 2, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.SiLU(),
            nn.Conv2d(hidden, channels, 3, padding=1),
        )
        for tensor in self.net[-1].parameters():
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        channels, height, width = self._shape
        h = x.reshape(len(x), channels, height, width) * self.log_scale.exp() + self.shift
        h = F.conv2d(h, self.mixing[:, :, None, None])
        a, b = h.chunk(2, 1)
        s, t = self._of(a)
        fixed = height * width * (self.log_scale.sum() + torch.linalg.slogdet(self.mixing)[1])
        return torch.cat([a, b * s.exp() + t], 1).flatten(1), s.sum((1, 2, 3)) + fixed

    def inverse(self, z: Tensor) -> Tensor:
        a, b = z.reshape(len(z), *self._shape).chunk(2, 1)
        s, t = self._of(a)
        h = torch.cat([a, (b - t) * (-s).exp()], 1)
        h = F.conv2d(h, torch.linalg.inv(self.mixing)[:, :, None, None])
        return ((h - self.shift) * (-self.log_scale).exp()).flatten(1)

    def _of(self, a: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.net(a).chunk(2, 1)
        return _MOST_LOG_SCALE * torch.tanh(s / _MOST_LOG_SCALE), t


class Squeeze(Transform):
    """Cut images (b, c, h, w), flattened, into blocks of 2 x 2, four channels for each: a permutation.

    Args:
        channels: channels.
        height: height, even.
        width: width, even.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self._shape = (channels, height, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x.reshape(len(x), *self._shape), 2).flatten(1), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        channels, height, width = self._shape
        return F.pixel_shuffle(z.reshape(len(z), 4 * channels, height // 2, width // 2), 2).flatten(1)


class Flow(Member):
    """A flow on logits of dequantised images.

    y = (x + u) / M, s = alpha/2 + (1 - alpha) y, v = ln s - ln(1 - s), z = f(v). The density of y is exact; minus D ln
    M it is a lower bound on the code's ln p(x), averaged over u.

    Args:
        form: the images.
        transform: f.
    """

    def __init__(self, form: Form, transform: Transform) -> None:
        super().__init__(form)
        self.transform = transform

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """Return ln p(y) - D ln M at one u, (b,)."""
        v, log_det = logits_of(self.form.dequantised(x, noise))
        z, more = self.transform(v)
        found: Tensor = normal_log_prob(z) + log_det + more - self.form.dims * math.log(self.form.levels)
        return found

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean of -ln p / D."""
        return -self.log_prob(batch.x, batch.noise).mean() / self.form.dims

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(count, self.form.dims, generator=generator, device=generator.device)
        return self.form.quantised((torch.sigmoid(self.transform.inverse(z)) - _EDGE / 2) / (1.0 - _EDGE))


def logits_of(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits v of y squeezed, (b, D), and ln |det dv/dy|, (b,)."""
    s = _EDGE / 2 + (1.0 - _EDGE) * y
    log_s, log_rest = s.log(), torch.log1p(-s)
    return log_s - log_rest, (math.log(1.0 - _EDGE) - log_s - log_rest).sum(1)


def normal_log_prob(z: Tensor) -> Tensor:
    """Return ln N(z; 0, I), (b,)."""
    return -0.5 * (z.square() + math.log(2.0 * math.pi)).sum(1)


def realnvp(form: Form, layers: int, hidden: Sequence[int]) -> Flow:
    """Return RealNVP with checkerboard masks that alternate."""
    rows, columns = torch.arange(form.height)[:, None], torch.arange(form.width)[None, :]
    board = ((rows + columns) % 2).flatten()
    return Flow(form, Composite([Coupling(board if place % 2 else 1 - board, hidden) for place in range(layers)]))


def maf(form: Form, layers: int, hidden: Sequence[int]) -> Flow:
    """Return a masked autoregressive flow whose layers reverse the order in turn."""
    return Flow(form, Composite([MaskedAffine(form.dims, hidden, reverse=place % 2 == 1) for place in range(layers)]))


def glow(form: Form, steps: int, hidden: int) -> Flow:
    """Return Glow of one scale: blocks of 2 x 2 pixels as four channels, then steps.

    Raises:
        ConfigError: a side is odd.
    """
    if form.height % 2 or form.width % 2:
        raise ConfigError(
            f"workload.members: 'glow' needs images with even sides, got {form.height} x {form.width}; set "
            "workload.size to an even number, or remove 'glow'"
        )
    half = (form.height // 2, form.width // 2)
    parts: list[Transform] = [Squeeze(1, form.height, form.width)]
    return Flow(form, Composite(parts + [GlowStep(4, *half, hidden) for _ in range(steps)]))
