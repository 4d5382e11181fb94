"""Early stopping of one client's training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedloom.workloads._torch.settings import EarlyStopping


class Stopper:
    """Compares a loss from epoch to epoch, and stores the weights of the best one.

    Args:
        settings: when it stops.
        tensors: what a client trains and sends, changed in place.
    """

    def __init__(self, settings: EarlyStopping, tensors: Sequence[Tensor]) -> None:
        self._settings, self._tensors = settings, [tensor.detach() for tensor in tensors]
        self._best, self._since = math.inf, 0
        self._kept: list[Tensor] = []

    def stops(self, loss: float) -> bool:
        """Add an epoch's loss; returns whether it was the last epoch."""
        if loss < self._best - self._settings.min_gain or not self._kept:
            self._best, self._since = loss, 0
            self._kept = [tensor.clone() for tensor in self._tensors]
        else:
            self._since += 1
        return self._since >= self._settings.patience

    def restore(self) -> None:
        """Set the tensors to those of the best epoch."""
        with torch.no_grad():
            torch._foreach_copy_(self._tensors, self._kept)
