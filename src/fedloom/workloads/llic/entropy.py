"""Entropy models: the hyper-transforms, and what a part of the latent is expected to be given those before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedloom.workloads.llic.config import Config
from fedloom.workloads.llic.prior import FactorisedPrior
from fedloom.workloads.llic.quantising import Take, rounded
from fedloom.workloads.llic.sampling import Attention, ResidualDown, ResidualUp, strided, sub_pixel, transposed
from fedloom.workloads.llic.swin import SwinBlock
from fedloom.workloads.llic.transforms import mixed

HYPER_STRIDE = 4
"""Places of the latent to a side of the hyper-latent's grid."""


def layers(widths: list[int], kernel: int, activation: type[nn.Module]) -> nn.Sequential:
    """Return convolutions of these widths with activations between."""
    parts = list[nn.Module]()
    for inputs, outputs in pairwise(widths):
        parts += [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), activation()]
    return nn.Sequential(*parts[:-1])


def spread(first: int, last: int, count: int) -> list[int]:
    """Return `count` whole numbers from first to last in equal steps."""
    return [round(first + (last - first) * place / (count - 1)) for place in range(count)]


class EntropyModel(nn.Module, ABC):
    """Hyper-analysis, prior, hyper-synthesis and contexts.

    Args:
        config: widths and groups.
    """

    analysis: nn.Module
    """h_a: (b, M, h, w) -> (b, Z, h / 4, w / 4)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.prior = FactorisedPrior(config.entropy.hyper)
        stops = torch.tensor(config.channel_groups).cumsum(0).tolist()
        self.groups = [slice(start, stop) for start, stop in pairwise((0, *stops))]

    def training_z(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the quantised hyper-latent with the identity's gradient, and its bits with noise for rounding."""
        medians = self.prior.medians[:, None, None]
        bits = -torch.log2(self.prior.likelihood(z + torch.rand_like(z) - 0.5)).sum()
        return rounded(z - medians) + medians, bits

    @abstractmethod
    def run(self, z: Tensor, take: Take) -> Tensor:
        """Return the quantised latent, (b, M, 4 h, 4 w), with one call of `take` for each part.

        Args:
            z: the quantised hyper-latent, (b, Z, h, w).
            take: gives a part's values.
        """


class CheckerboardModel(EntropyModel):
    """ELIC's: uneven groups of channels, each coded at the even places of a checkerboard, then at the odd ones."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        m, z, context = config.latent, config.entropy.hyper, list(config.entropy.context)
        wide = round(1.5 * m)
        self.analysis = nn.Sequential(nn.Conv2d(m, z, 3, padding=1), nn.ReLU(), strided(z, z), nn.ReLU(), strided(z, z))
        self.synthesis = nn.Sequential(
            transposed(z, m), nn.ReLU(), transposed(m, wide), nn.ReLU(), nn.Conv2d(wide, 2 * m, 3, padding=1)
        )
        self.channel, self.spatial = nn.ModuleList(), nn.ModuleList()
        self.anchors, self.others = nn.ModuleList(), nn.ModuleList()
        for group in self.groups:
            two, known = 2 * (group.stop - group.start), 2 * m
            self.channel.append(layers([group.start, *context, two], 5, nn.ReLU) if group.start else nn.Identity())
            self.spatial.append(nn.Conv2d(two // 2, two, 5, padding=2))
            known += two if group.start else 0
            self.anchors.append(layers(spread(known, two, 4), 1, nn.ReLU))
            self.others.append(layers(spread(known + two, two, 4), 1, nn.ReLU))

    def run(self, z: Tensor, take: Take) -> Tensor:
        hyper = self.synthesis(z)
        even = checkerboard(hyper)
        done = list[Tensor]()
        for place, group in enumerate(self.groups):
            known = torch.cat([hyper, self.channel[place](torch.cat(done, 1))], 1) if done else hyper
            mean, scale = self.anchors[place](known).chunk(2, 1)
            first = take(group, even, mean, scale)
            mean, scale = self.others[place](torch.cat([known, self.spatial[place](first)], 1)).chunk(2, 1)
            done.append(first + take(group, ~even, mean, scale))
        return torch.cat(done, 1)


def checkerboard(x: Tensor) -> Tensor:
    """Return the even places of x's grid, (h, w), bool."""
    h, w = x.shape[-2:]
    rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    return (rows[:, None] + columns[None, :]) % 2 == 0


class SliceModel(EntropyModel):
    """Slices of channels one after the other, with a prediction of what rounding took away (STF, TCM)."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.means, self.scales, self.residuals = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        m, context = config.latent, list(config.entropy.context)
        for place, group in enumerate(self.groups):
            width = group.stop - group.start
            known = m + width * min(place, config.entropy.support)
            self.means.append(self.net([known, *context, width]))
            self.scales.append(self.net([known, *context, width]))
            self.residuals.append(layers([known + width, *context, width], 3, nn.GELU))

    @abstractmethod
    def net(self, widths: list[int]) -> nn.Module:
        """Return what makes a slice's means or scales of its context, with these widths."""

    @abstractmethod
    def hyper(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the contexts of means and of scales, (b, M, 4 h, 4 w) each."""

    def run(self, z: Tensor, take: Take) -> Tensor:
        for_means, for_scales = self.hyper(z)
        done = list[Tensor]()
        for place, group in enumerate(self.groups):
            seen = done[: self.config.entropy.support]
            support = torch.cat([for_means, *seen], 1)
            mean, scale = self.means[place](support), self.scales[place](torch.cat([for_scales, *seen], 1))
            values = take(group, None, mean, scale)
            residual = self.residuals[place](torch.cat([support, values], 1))
            done.append(values + 0.5 * torch.tanh(residual))
        return torch.cat(done, 1)


class StfModel(SliceModel):
    """The slices of STF's and WACNN's code."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        a, b, c, d, e = spread(config.latent, config.entropy.hyper, 5)
        self.analysis = nn.Sequential(
            nn.Conv2d(a, a, 3, padding=1), nn.GELU(), nn.Conv2d(a, b, 3, padding=1), nn.GELU(),
            strided(b, c, 3), nn.GELU(), nn.Conv2d(c, d, 3, padding=1), nn.GELU(), strided(d, e, 3),
        )  # fmt: skip
        self.for_means, self.for_scales = (_stf_synthesis([e, d, c, b, a]) for _ in range(2))

    def net(self, widths: list[int]) -> nn.Module:
        return layers(widths, 3, nn.GELU)

    def hyper(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.for_means(z), self.for_scales(z)


def _stf_synthesis(widths: list[int]) -> nn.Sequential:
    e, d, c, b, a = widths
    return nn.Sequential(
        nn.Conv2d(e, e, 3, padding=1), nn.GELU(), sub_pixel(e, d), nn.GELU(), nn.Conv2d(d, c, 3, padding=1), nn.GELU(),
        sub_pixel(c, b), nn.GELU(), nn.Conv2d(b, a, 3, padding=1),
    )  # fmt: skip


class AttendedContext(nn.Module):
    """TCM's attention on a context: 1 x 1 to fewer channels, a gate with two Swin blocks, 1 x 1 back."""

    def __init__(self, channels: int, inner: int, head: int, window: int) -> None:
        super().__init__()
        swins = nn.Sequential(*(SwinBlock(inner, head, window, shifted=shifted) for shifted in (False, True)))
        self.enter, self.leave = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.attention = Attention(inner, swins)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over a context, (b, c, h, w)."""
        attended: Tensor = self.leave(self.attention(self.enter(x)))
        return attended


class TcmModel(SliceModel):
    """TCM's slices, each with windowed attention on its context."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        m, z, wide = config.latent, config.entropy.hyper, config.entropy.mixed
        self.analysis = nn.Sequential(ResidualDown(m, wide), *self._mixed(), strided(wide, z, 3))
        self.for_means, self.for_scales = (
            nn.Sequential(ResidualUp(z, wide), *self._mixed(), sub_pixel(wide, m)) for _ in range(2)
        )

    def _mixed(self) -> list[nn.Module]:
        entropy = self.config.entropy
        return mixed(entropy.mixed, entropy.hyper_head, max(entropy.window // 2, 1), 1)

    def net(self, widths: list[int]) -> nn.Module:
        entropy = self.config.entropy
        attended = AttendedContext(widths[0], entropy.attention, entropy.head, entropy.window)
        return nn.Sequential(attended, layers(widths, 3, nn.GELU))

    def hyper(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.for_means(z), self.for_scales(z)


def entropy_model(config: Config) -> EntropyModel:
    """Return the entropy model of the settings."""
    kinds: dict[str, type[EntropyModel]] = {"elic": CheckerboardModel, "stf": StfModel, "tcm": TcmModel}
    return kinds[config.entropy.kind](config)
