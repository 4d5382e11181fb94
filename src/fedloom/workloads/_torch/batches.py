"""Draws the rows of each step of a client's training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fedloom.core.records import Array
from fedloom.workloads._torch.settings import TrainingSettings


def epochs(
    rows: Array, settings: TrainingSettings, rng: np.random.Generator, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the minibatches of each pass over a client's rows, in a new order each.

    Args:
        rows: the client's, (n,), int64.
        settings: size of a minibatch, and how many passes or steps.
        rng: gives the orders.
        device: where the minibatches are wanted.
    """
    left = settings.steps_of(len(rows))
    while left > 0:
        order = torch.from_numpy(rows[rng.permutation(len(rows))]).to(device)
        batches = torch.split(order, settings.batch_size)[:left]
        left -= len(batches)
        yield batches
