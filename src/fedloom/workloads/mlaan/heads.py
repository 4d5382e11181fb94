"""Auxiliary heads: compute a local loss from a module's features.

h: features a module (or a window of modules) has computed, (b, c, s, s); z: the same after leap augmented blocks, h
itself without them; y: classes, (b,).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads.mlaan.net import Block, Classifier, make_norm

_HIDDEN = 128
_DECODER = 12


@dataclass(frozen=True, slots=True)
class Batch:
    """A minibatch."""

    x: Tensor
    """Normalised images, (b, channels, height, width)."""
    y: Tensor
    pixels: Tensor | None = None
    """The images with values from 0 to 1; only for reconstruction."""


class Head(nn.Module, ABC):
    """A local loss with its parameters."""

    @abstractmethod
    def loss(self, h: Tensor, z: Tensor, batch: Batch) -> Tensor:
        """Return the mean local loss of a minibatch."""


class TaskHead(Head):
    """Cross-entropy of a network's logits: L = CE(g(z), y)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, h: Tensor, z: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(self.network(z), batch.y)


class InfoProHead(Head):
    """L = lambda_1 BCE(decoder(h), pixels) + lambda_2 CE(g(z), y), or supervised contrast in place of CE.

    Wang et al. 2021, "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training", equations 6 to 9.
    """

    def __init__(
        self, network: nn.Module, decoder: nn.Module, weights: tuple[float, float], temperature: float | None
    ) -> None:
        super().__init__()
        self.network, self.decoder = network, decoder
        self._weights, self._temperature = weights, temperature

    def loss(self, h: Tensor, z: Tensor, batch: Batch) -> Tensor:
        if batch.pixels is None:
            raise ValueError("InfoPro needs the images' pixels")
        out = self.network(z)
        if self._temperature is None:
            task = F.cross_entropy(out, batch.y)
        else:
            task = supervised_contrast(out, batch.y, self._temperature)
        restored = self.decoder(h)
        weight_x, weight_y = self._weights
        return weight_x * F.binary_cross_entropy(restored, batch.pixels) + weight_y * task


class Decoder(nn.Module):
    """Features back to pixels: bilinear to the images' size, 3 x 3 to 12 channels, 3 x 3 to the images', sigmoid."""

    def __init__(self, width: int, shape: tuple[int, int, int], norm: str) -> None:
        super().__init__()
        channels, height, breadth = shape
        self._size = (height, breadth)
        self.conv1 = nn.Conv2d(width, _DECODER, 3, 1, 1, bias=False)
        self.norm1 = make_norm(norm, _DECODER)
        self.conv2 = nn.Conv2d(_DECODER, channels, 3, 1, 1)

    def forward(self, h: Tensor) -> Tensor:
        """(b, width, s, s) to (b, channels, height, width), values from 0 to 1."""
        large = F.interpolate(h, size=self._size, mode="bilinear", align_corners=True)
        return torch.sigmoid(self.conv2(F.relu(self.norm1(self.conv1(large)))))


class ConvHead(nn.Module):
    """DGL's head as InfoPro and MLAAN use it: 3 x 3 convolution, pooling, linear, ReLU, linear."""

    def __init__(self, width: int, after: int, classes: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, after, 3, 2 if after > width else 1, 1, bias=False)
        self.norm = make_norm(norm, after)
        self.linear1 = nn.Linear(after, _HIDDEN)
        self.linear2 = nn.Linear(_HIDDEN, classes)

    def features(self, z: Tensor) -> Tensor:
        """(b, width, s, s) to (b, 128)."""
        hidden: Tensor = self.linear1(F.relu(self.norm(self.conv(z))).mean((2, 3)))
        return hidden

    def forward(self, z: Tensor) -> Tensor:
        """Return the logits, (b, classes)."""
        logits: Tensor = self.linear2(F.relu(self.features(z)))
        return logits


class Features(nn.Module):
    """Features of unit length for supervised contrast: a head's last layer but one, or pooled ones."""

    def __init__(self, head: ConvHead | Classifier) -> None:
        super().__init__()
        self.head = head
        if isinstance(head, ConvHead):
            del head.linear2

    def forward(self, z: Tensor) -> Tensor:
        """(b, c, s, s) to (b, n)."""
        found = self.head.features(z) if isinstance(self.head, ConvHead) else self.head(z)
        return F.normalize(found, dim=1)


def augmented_network(width: int, widths: Sequence[int], classes: int, norm: str) -> nn.Module:
    """Return AugLocal's network: a block for each of the widths, stride 2 where it grows, and a linear classifier."""
    blocks = []
    for after in widths:
        blocks.append(Block(width, after, 2 if after > width else 1, norm))
        width = after
    return nn.Sequential(*blocks, Classifier(width, classes))


def supervised_contrast(features: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Mean over images i with others of their class: -1/|P(i)| sum_{p in P(i)} ln softmax_{a != i}(f_i f_a / tau)_p.

    Khosla et al. 2020, "Supervised Contrastive Learning", equation 2.

    Args:
        features: of unit length, (b, n).
        y: classes, (b,).
        temperature: tau; dimensionless.
    """
    itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
    scores = (features @ features.T / temperature).masked_fill(itself, -torch.inf)
    same = (y[:, None] == y[None, :]) & ~itself
    logs = scores.log_softmax(1).masked_fill(~same, 0.0)
    counts = same.sum(1)
    each = -logs.sum(1) / counts.clamp(min=1)
    return each.sum() / (counts > 0).sum().clamp(min=1)
