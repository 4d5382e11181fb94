"""Analysis and synthesis transforms: LLIC's, and those of ELIC, STF and TCM that it is compared with.

Each halves the resolution four times, 3 -> M channels, and back. What a synthesis transform computes depends on the
quantised latent alone.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads.llic.blocks import ChannelTransform, SpatialTransform, TransformBlock
from fedloom.workloads.llic.config import Config, TransformSettings
from fedloom.workloads.llic.normalisation import GDN
from fedloom.workloads.llic.sampling import (
    Attention,
    Bottleneck,
    ResidualDown,
    ResidualUp,
    strided,
    sub_pixel,
    transposed,
)
from fedloom.workloads.llic.swin import SwinBlock

_GAIN = 16.0
"""What the last step down is multiplied by at the start, and the first step up divided by.

So latents span several symbols from the start (deviation near 2); it takes hundreds of steps to get there otherwise.
"""
STRIDE = 16
"""Pixels to a side of the latent's grid."""


class Stages(nn.Sequential):
    """Parts in a row, whose output is that of the last."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform images or features, (b, c, h, w)."""
        for part in self:
            x = part(x)
        return x


def transforms(config: Config) -> tuple[Stages, Stages]:
    """Return the analysis and the synthesis transform of the settings."""
    name, (stages, latent) = config.transform.kind, (config.channels, config.latent)
    if name == "llic":
        return llic_analysis(config.transform, stages, latent), llic_synthesis(config.transform, stages, latent)
    if name == "elic":
        return elic_analysis(stages, latent), elic_synthesis(stages, latent)
    if name == "stf":
        return stf_analysis(config.transform), stf_synthesis(config.transform)
    return tcm_analysis(config.transform, stages, latent), tcm_synthesis(config.transform, stages, latent)


def _scaled(part: nn.Module, factor: float) -> nn.Module:
    """Return a part whose convolutions' weights are multiplied by a factor."""
    with torch.no_grad():
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(factor)
    return part


def _pair(settings: TransformSettings, channels: int, kernel: int, *, inverse: bool) -> list[nn.Module]:
    """Return a spatial block and a channel block, in that order or, for synthesis, the other way round."""
    spatial: nn.Module = SpatialTransform(channels, kernel, settings.generator)
    factors: nn.Module | None = ChannelTransform(channels) if settings.channel_factors else None
    blocks: list[nn.Module] = [
        TransformBlock(channels, spatial, gated=settings.gate),
        TransformBlock(channels, factors, gated=settings.gate),
    ]
    return blocks[::-1] if inverse else blocks


def llic_analysis(settings: TransformSettings, stages: tuple[int, int, int], latent: int) -> Stages:
    """Return LLIC's g_a: three residual steps down and a plain one, blocks after each."""
    parts = list[nn.Module]()
    widths = (3, *stages, latent)
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        parts.append(_scaled(strided(inputs, outputs, 3), _GAIN) if place == 3 else ResidualDown(inputs, outputs))
        for _ in range(settings.blocks[place]):
            parts += _pair(settings, outputs, settings.kernels[place], inverse=False)
    return Stages(*parts)


def llic_synthesis(settings: TransformSettings, stages: tuple[int, int, int], latent: int) -> Stages:
    """Return LLIC's g_s: kernels mirrored, blocks before each step up."""
    parts = list[nn.Module]()
    widths = (latent, *stages[::-1], 3)
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        for _ in range(settings.synthesis_blocks[place]):
            parts += _pair(settings, inputs, settings.kernels[3 - place], inverse=True)
        if place == 3:
            parts.append(sub_pixel(inputs, outputs))
        else:
            up: nn.Module = ResidualUp(inputs, outputs) if settings.up == "residual" else sub_pixel(inputs, outputs)
            parts.append(_scaled(up, 1.0 / _GAIN) if place == 0 else up)
            if settings.up == "sub_pixel":
                parts.append(GDN(outputs, inverse=True))
    return Stages(*parts)


def _units(channels: int) -> list[nn.Module]:
    return [Bottleneck(channels) for _ in range(3)]


def elic_analysis(stages: tuple[int, int, int], latent: int) -> Stages:
    """Return ELIC's g_a (He et al. 2022): 5 x 5 convolutions, three residual units after each, attention twice."""
    one, two, three = stages
    parts = [strided(3, one), *_units(one), strided(one, two), *_units(two), Attention(two)]
    return Stages(*parts, strided(two, three), *_units(three), strided(three, latent), Attention(latent))


def elic_synthesis(stages: tuple[int, int, int], latent: int) -> Stages:
    """Return ELIC's g_s."""
    one, two, three = stages
    parts = [Attention(latent), transposed(latent, three), *_units(three), transposed(three, two), Attention(two)]
    return Stages(*parts, *_units(two), transposed(two, one), *_units(one), transposed(one, 3))


class Merge(nn.Module):
    """Patch merging: 2 x 2 places become one of twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduce = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features at half the resolution."""
        tokens = F.pixel_unshuffle(x, 2).permute(0, 2, 3, 1)
        merged: Tensor = self.reduce(self.norm(tokens)).permute(0, 3, 1, 2).contiguous()
        return merged


class Split(nn.Module):
    """Patch splitting: one place becomes 2 x 2 of half the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features at twice the resolution."""
        tokens = self.expand(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2).contiguous()
        return F.pixel_shuffle(tokens, 2)


def _swins(settings: TransformSettings, channels: int, head: int, depth: int) -> list[nn.Module]:
    return [SwinBlock(channels, head, settings.window, shifted=bool(place % 2)) for place in range(depth)]


def stf_analysis(settings: TransformSettings) -> Stages:
    """Return STF's g_a (Zou et al. 2022): patches of 2 x 2, four stages of windowed attention, merging between."""
    width, parts = settings.embedding, list[nn.Module]()
    parts.append(nn.Conv2d(3, width, 2, stride=2))
    for stage, depth in enumerate(settings.depths):
        parts += _swins(settings, width, settings.head, depth)
        if stage < 3:
            parts.append(Merge(width))
            width *= 2
    return Stages(*parts)


def stf_synthesis(settings: TransformSettings) -> Stages:
    """Return STF's g_s: the stages mirrored, splitting between, a 5 x 5 and a 3 x 3 convolution at the end."""
    width, parts = 8 * settings.embedding, list[nn.Module]()
    for stage, depth in enumerate((settings.depths[0], *settings.depths[2:0:-1], settings.depths[0])):
        parts += _swins(settings, width, settings.head, depth)
        if stage < 3:
            parts.append(Split(width))
            width //= 2
    return Stages(*parts, sub_pixel(width, width, kernel=5), nn.Conv2d(width, 3, 3, padding=1))


class Mixed(nn.Module):
    """TCM's parallel block (Liu et al. 2023): half of the channels through a residual unit, half through attention.

    Args:
        channels: 2 N; each half has N.
        head: width of an attention head.
        window: side of a window.
        shifted: whether windows are shifted.
    """

    def __init__(self, channels: int, head: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        half = channels // 2
        self.enter, self.leave = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.one, self.two = nn.Conv2d(half, half, 3, padding=1), nn.Conv2d(half, half, 3, padding=1)
        self.attended = SwinBlock(half, head, window, shifted=shifted)

    def forward(self, x: Tensor) -> Tensor:
        """Transform features (b, 2 N, h, w)."""
        local, far = self.enter(x).chunk(2, 1)
        local = local + F.leaky_relu(self.two(F.leaky_relu(self.one(local))))
        out: Tensor = x + self.leave(torch.cat([local, self.attended(far)], 1))
        return out


def mixed(channels: int, head: int, window: int, count: int) -> list[nn.Module]:
    """Return TCM's blocks, every second one with shifted windows."""
    return [Mixed(channels, head, window, shifted=bool(place % 2)) for place in range(count)]


def tcm_analysis(settings: TransformSettings, stages: tuple[int, int, int], latent: int) -> Stages:
    """Return TCM's g_a: residual steps down, mixed blocks after each."""
    parts = list[nn.Module]()
    for inputs, outputs, head in zip((3, *stages), stages, settings.heads, strict=False):
        parts += [ResidualDown(inputs, outputs), *mixed(outputs, head, settings.window, settings.mixed_blocks)]
    return Stages(*parts, strided(stages[2], latent, 3))


def tcm_synthesis(settings: TransformSettings, stages: tuple[int, int, int], latent: int) -> Stages:
    """Return TCM's g_s: residual steps up, mixed blocks after each."""
    parts, widths = list[nn.Module](), stages[::-1]
    for inputs, outputs, head in zip((latent, *widths), widths, settings.heads[::-1], strict=False):
        parts += [ResidualUp(inputs, outputs), *mixed(outputs, head, settings.window, settings.mixed_blocks)]
    return Stages(*parts, sub_pixel(stages[0], 3))
