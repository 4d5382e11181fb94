"""Randomness of the members: drawn in training, a function of the example's number in evaluation."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""The odd constant of splitmix64, as a signed integer."""
_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_BITS = 23
"""Bits of a uniform number: (k + 1/2) / 2**23 is exact in float32 and neither 0 nor 1."""


class Noise(Protocol):
    """Independent random numbers for the examples of a minibatch."""

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers between 0 and 1, (b, *shape), float32."""

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers, (b, *shape), float32."""


class DrawnNoise:
    """Noise from a generator, one draw after another.

    Args:
        count: examples b.
        generator: torch's, on the device of the work.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._count, self.generator = count, generator

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self._count, *shape, generator=self.generator, device=self.generator.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self._count, *shape, generator=self.generator, device=self.generator.device)


class RowNoise:
    """Noise that depends on an example's number alone, so that a measurement does not depend on minibatches or parts.

    Args:
        rows: numbers of the examples, (b,), int64.
        stream: another stream for the same rows.
    """

    def __init__(self, rows: Tensor, stream: int = 0) -> None:
        offset = (stream * _GOLDEN + 2**63) % 2**64 - 2**63  # as the product of 64-bit integers
        self._keys = _mixed(_mixed(rows + offset) + _GOLDEN)
        self._used = 0

    def uniform(self, *shape: int) -> Tensor:
        count = math.prod(shape)
        places = torch.arange(self._used, self._used + count, device=self._keys.device)
        self._used += count
        bits = _shifted(_mixed(self._keys[:, None] + (places + 1) * _GOLDEN), 64 - _BITS)
        drawn: Tensor = (bits.float() + 0.5) / 2**_BITS
        return drawn.reshape(len(self._keys), *shape)

    def normal(self, *shape: int) -> Tensor:
        return torch.erfinv(2.0 * self.uniform(*shape) - 1.0) * math.sqrt(2.0)


def _mixed(z: Tensor) -> Tensor:
    """Return splitmix64's finaliser of 64-bit integers; products wrap around."""
    z = (z ^ _shifted(z, 30)) * _MIX[0]
    z = (z ^ _shifted(z, 27)) * _MIX[1]
    mixed: Tensor = z ^ _shifted(z, 31)
    return mixed


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Return 64-bit integers shifted right, zeros coming in."""
    shifted: Tensor = (z >> bits) & (2 ** (64 - bits) - 1)
    return shifted
