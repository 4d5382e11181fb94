"""Effective receptive fields, and how much a codec adapts to an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from fedloom.core.records import Array, JsonObject
from fedloom.workloads.llic.blocks import ChannelTransform, SpatialTransform
from fedloom.workloads.llic.net import Codec

SHARES = (0.2, 0.3, 0.5, 0.99)
"""Shares of the total gradient whose area is given, as Ding et al. 2022 (RepLKNet) do."""


def receptive_field(codec: Codec, images: Tensor, *, through_generators: bool) -> Array:
    """Return the mean absolute gradient of the centre of the latent by pixel, (H, W), summing to 1.

    Args:
        codec: in evaluation mode.
        images: (n, 3, H, W) from 0 to 1, sides multiples of 64.
        through_generators: whether gradients pass through generated kernels and factors, which see the whole image.
    """
    total = np.zeros(images.shape[2:])
    with torch.enable_grad(), _detached(codec, detached=not through_generators):
        for image in images:
            x = image[None].clone().requires_grad_()
            y = codec.analysis(x)
            y[0, :, y.shape[2] // 2, y.shape[3] // 2].sum().backward()
            if x.grad is not None:
                total += x.grad[0].abs().sum(0).double().cpu().numpy()
        for parameter in codec.parameters():
            parameter.grad = None
    return np.asarray(total / max(float(total.sum()), 1e-30))


def area_shares(field: Array) -> list[float]:
    """Return the share of a field's area that the strongest pixels need for each of `SHARES` of its total."""
    strongest = np.cumsum(np.sort(field, axis=None)[::-1])
    return [float((np.searchsorted(strongest, share * strongest[-1]) + 1) / field.size) for share in SHARES]


@contextmanager
def _detached(codec: Codec, *, detached: bool) -> Iterator[None]:
    parts = [each for each in codec.modules() if isinstance(each, SpatialTransform | ChannelTransform)]
    for part in parts:
        part.detached = detached
    try:
        yield
    finally:
        for part in parts:
            part.detached = False


def adaptivity(codec: Codec, images: Sequence[Tensor]) -> JsonObject:
    """Return how kernels and factors differ between images, and what another image's kernels cost.

    Args:
        codec: in evaluation mode.
        images: (1, 3, H, W) each, at least two.

    Returns:
        `kernel_spread`: standard deviation of kernels over images over their root mean square, the median of blocks;
        `factor_spread`: likewise of channel factors; `factor_bits_correlation`: rank correlation of the latent's last
        factors with its bits by channel; `swapped_loss`: loss with the kernels of the next image over the own loss.
        None for what a codec does not have.
    """
    spatial = [each for each in codec.modules() if isinstance(each, SpatialTransform)]
    channel = [each for each in codec.modules() if isinstance(each, ChannelTransform)]
    with _remembering([*spatial, *channel]):
        seen, factors, bits, losses = list[list[Tensor]](), list[list[Tensor]](), list[Tensor](), list[float]()
        for x in images:
            found = codec.estimate(x)
            losses.append(_loss(codec, x))
            seen.append([each.kernels for each in spatial if each.kernels is not None])
            factors.append([each.factors for each in channel if each.factors is not None])
            bits.append(found.bits)
    swapped = list[float]()
    if spatial:
        for place, x in enumerate(images):
            other = seen[(place + 1) % len(images)]
            for block, kernels in zip(spatial, other, strict=True):
                block.replacement = kernels
            try:
                swapped.append(_loss(codec, x))
            finally:
                for block in spatial:
                    block.replacement = None
    return {
        "kernel_spread": _spread(seen),
        "factor_spread": _spread(factors),
        "factor_bits_correlation": _factor_bits(codec, factors, bits),
        "swapped_loss": float(np.mean(swapped) / np.mean(losses)) if swapped else None,
    }


def _loss(codec: Codec, x: Tensor) -> float:
    found = codec.estimate(x)
    return found.total / (x.shape[2] * x.shape[3]) + codec.config.trade_off * float(codec.distortion(found.image, x))


@contextmanager
def _remembering(parts: Sequence[SpatialTransform | ChannelTransform]) -> Iterator[None]:
    for part in parts:
        part.remember = True
    try:
        yield
    finally:
        for part in parts:
            part.remember = False


def _spread(seen: Sequence[Sequence[Tensor]]) -> float | None:
    if not seen or not seen[0]:
        return None
    blocks = [torch.stack(list(each)) for each in zip(*seen, strict=True)]
    return float(
        np.median([float(block.std(0).square().mean().sqrt() / block.square().mean().sqrt()) for block in blocks])
    )


def _factor_bits(codec: Codec, factors: Sequence[Sequence[Tensor]], bits: Sequence[Tensor]) -> float | None:
    """Return the mean over images of the rank correlation of the analysis' last factors and bits."""
    count = sum(isinstance(each, ChannelTransform) for each in codec.analysis.modules())
    if not count:
        return None
    found = [_rank_correlation(each[count - 1].flatten(), bit) for each, bit in zip(factors, bits, strict=True)]
    return float(np.mean(found))


def _rank_correlation(x: Tensor, y: Tensor) -> float:
    ranks = [each.argsort().argsort().double() for each in (x, y)]
    centred = [each - each.mean() for each in ranks]
    return float((centred[0] * centred[1]).sum() / (centred[0].norm() * centred[1].norm()).clamp_min(1e-12))
