"""A model and data of a program, for runs from Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.records import Array

X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


class Net(nn.Module):
    """A linear classifier, three inputs, two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


def made_net(seed: int = 3) -> Net:
    """The model with weights of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


QUICK: dict[str, Any] = {"clients": 3, "rounds": 2, "runtime": "inline", "sinks": (), "keep": False}
"""A run that takes a few milliseconds."""


def table(rows: int = 60) -> tuple[Array, Array]:
    """The first rows of the data."""
    return X[:rows], Y[:rows]
