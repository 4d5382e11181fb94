"""Quantisation, and what values cost under a Gaussian: the same for training, estimates and real coding."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from fedloom.workloads.llic.normalisation import lower_bound
from fedloom.workloads.llic.prior import LEAST

LEAST_SCALE = 0.11
"""Standard deviations are at least this."""
GRID = 64
"""Means are rounded to this fraction of a step where streams are coded, so that small differences cannot reach them."""
MOST = 2**18
"""Symbols are limited to this magnitude."""


def rounded(x: Tensor) -> Tensor:
    """Round with the gradient of the identity."""
    return x + (torch.round(x) - x).detach()


def gaussian_mass(x: Tensor, scale: Tensor) -> Tensor:
    """Return the mass of [x - 1/2, x + 1/2] under N(0, scale^2), at least 1e-9; x has its mean taken off."""
    distance, scale = x.abs(), lower_bound(scale, LEAST_SCALE)
    upper, lower = (0.5 - distance) / scale, (-0.5 - distance) / scale
    return lower_bound(0.5 * (torch.erfc(-upper / math.sqrt(2)) - torch.erfc(-lower / math.sqrt(2))), LEAST)


class Take(Protocol):
    """What an entropy model calls for each part of the latent, in the order of coding."""

    def __call__(self, channels: slice, where: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
        """Return the quantised values of a part.

        Args:
            channels: of the latent.
            where: places of the part, (h, w), bool; None is all of them.
            mean: (b, C_k, h, w); read at the part's places.
            scale: likewise.

        Returns:
            The values, (b, C_k, h, w); zero elsewhere.
        """


class Noise:
    """Training: the rate of values with noise in place of rounding, values rounded with the identity's gradient.

    Args:
        y: the latent, (b, M, h, w).
    """

    def __init__(self, y: Tensor) -> None:
        self._y = y
        self.bits = y.new_zeros(())
        """Of all parts so far."""

    def __call__(self, channels: slice, where: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
        offset = self._y[:, channels] - mean
        noisy = offset + torch.rand_like(offset) - 0.5
        bits = -torch.log2(gaussian_mass(noisy, scale))
        values = rounded(offset) + mean
        if where is not None:
            bits, values = bits * where, values * where
        self.bits = self.bits + bits.sum()
        return values


class Estimate:
    """Evaluation: values as they are coded, and their ideal code length by channel.

    Args:
        y: the latent, (b, M, h, w).
    """

    def __init__(self, y: Tensor) -> None:
        self._y = y
        self.bits = y.new_zeros(y.shape[1])
        """By channel, (M,)."""

    def __call__(self, channels: slice, where: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
        mean = torch.round(mean * GRID) / GRID
        symbols = torch.round(self._y[:, channels] - mean).clamp(-MOST, MOST)
        bits, values = -torch.log2(gaussian_mass(symbols, scale)), symbols + mean
        if where is not None:
            bits, values = bits * where, values * where
        self.bits[channels] += bits.sum((0, 2, 3))
        return values
