"""The task of both workloads: images of noise, a network, and the settings of its training."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.seeds import generator

CLIENTS = 20
SIZE = 100
"""Examples of a client."""
BATCH = 20
RATE = 0.05
Network = Literal["mlp", "cnn"]


@lru_cache(1)
def examples() -> tuple[Tensor, Tensor]:
    """Return images (n, 1, 28, 28), float32, and classes (n,), int64; client k has rows k * SIZE and following."""
    rng = generator(0, "own_workload")
    x = rng.normal(size=(CLIENTS * SIZE, 1, 28, 28)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(rng.integers(0, 10, CLIENTS * SIZE))


def network(kind: Network) -> nn.Module:
    """Return a network of 51 thousand parameters, or one of 30 thousand with convolutions."""
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(16, 32, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10)),
    )
