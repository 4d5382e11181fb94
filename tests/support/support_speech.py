"""A tiny encoder with exits, and made-up utterances, for every test of the workload."""

from typing import Any

import torch
from torch import Tensor

from fedloom.workloads.hubert_ee.config import NetSettings
from fedloom.workloads.hubert_ee.net import EarlyExit

SIZES: dict[str, Any] = {"layers": 4, "width": 16, "heads": 2, "feed_forward": 24, "channels": 8}


def net(kind: str = "attention", exits: tuple[int, ...] = (1, 3), **sizes: Any) -> EarlyExit:
    """Four layers with branches after the first and the third, in evaluation mode."""
    torch.manual_seed(3)
    return EarlyExit(NetSettings(**{**SIZES, **sizes}), exits, kind).eval()


def waves(*samples: int) -> tuple[Tensor, Tensor]:
    """Noise of these lengths, padded with zeros, and the lengths."""
    generator = torch.Generator().manual_seed(5)
    padded = torch.zeros(len(samples), max(samples))
    for row, count in enumerate(samples):
        padded[row, :count] = 0.1 * torch.randn(count, generator=generator)
    return padded, torch.tensor(samples)
