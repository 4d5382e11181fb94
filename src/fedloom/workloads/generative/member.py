"""The interface of all members: a loss, samples, and a log-likelihood where there is one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedloom.core.errors import UnsupportedFeature
from fedloom.workloads.generative.noise import Noise


@dataclass(frozen=True, slots=True)
class Form:
    """The images: one channel, whole grey levels."""

    height: int
    width: int
    levels: int
    """Grey levels M; a pixel is a whole number from 0 to M - 1."""
    classes: int = 0

    @property
    def dims(self) -> int:
        """Return the pixels of an image, D."""
        return self.height * self.width

    def scaled(self, x: Tensor) -> Tensor:
        """Return levels as numbers from -1 to 1, float32, in the shape of `x`."""
        return x.float() * (2.0 / max(self.levels - 1, 1)) - 1.0

    def dequantised(self, x: Tensor, noise: Noise) -> Tensor:
        """Return (x + u) / M with uniform u, between 0 and 1, (b, D)."""
        return (x.flatten(1).float() + noise.uniform(self.dims)) / self.levels

    def quantised(self, y: Tensor) -> Tensor:
        """Return the levels of numbers y between 0 and 1, floor(M y), as images (b, 1, h, w), int64."""
        levels = (y.nan_to_num() * self.levels).long().clamp(0, self.levels - 1)
        return levels.reshape(len(y), 1, self.height, self.width)

    def nearest(self, x: Tensor) -> Tensor:
        """Return the levels nearest to numbers from -1 to 1, as images (b, 1, h, w), int64."""
        levels = ((x.nan_to_num() + 1.0) * (0.5 * (self.levels - 1))).round().long()
        return levels.clamp(0, self.levels - 1).reshape(len(x), 1, self.height, self.width)


@dataclass(frozen=True, slots=True)
class Batch:
    """A training minibatch."""

    x: Tensor
    """Grey levels, (b, 1, h, w), int64."""
    y: Tensor
    """Classes, (b,), int64."""
    noise: Noise
    generator: torch.Generator
    """The same randomness as `noise`, for numbers that are not one per example."""


class Member(nn.Module, ABC):
    """A generative model of images.

    Args:
        form: the images.
    """

    rate: ClassVar[float] = 1.0
    """Factor on the settings' step size."""
    betas: ClassVar[tuple[float, float] | None] = None
    """Decays of the optimiser's moments in place of the settings'."""
    clip: ClassVar[float | None] = None
    """Largest Euclidean norm of this member's gradient."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Return what a step minimises, a tensor without dimensions."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return new images, (count, 1, h, w), int64 levels."""

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """Return ln p of images of grey levels, or a lower bound or estimate of it; nats, (b,).

        Raises:
            UnsupportedFeature: the family has no likelihood.
        """
        raise UnsupportedFeature(
            f"{type(self).__name__} has no likelihood, so no bits per dimension; compare it by samples (the Fréchet "
            "distance), or choose a member whose density is exact, a bound or an estimate"
        )

    def bits_per_dim(self, x: Tensor, noise: Noise) -> Tensor:
        """Return -log2 p(x) / D of each image, (b,)."""
        return -self.log_prob(x, noise) / (self.form.dims * math.log(2.0))

    def players(self) -> Mapping[str, nn.Module]:
        """Return the parts that take turns and have an optimiser each, by attribute; none by default: one player."""
        return {}

    def turn(self, step: int) -> str:
        """Return the player that a step (from 0 in a client's round) trains, asked before its loss; "" is the whole."""
        return ""

    def observe(self, x: Tensor) -> None:
        """Set what is counted and not learned by steps, from all images of a client, (n, 1, h, w); nothing by default.

        Buffers set here are averaged over clients with their numbers of examples, so they must be means over images.
        """
