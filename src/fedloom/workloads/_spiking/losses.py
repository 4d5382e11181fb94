"""Losses on the spikes of the output layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.workloads._spiking.settings import LossName


def masked_means(losses: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each client's losses (A, b) over the examples of its mask (A, b) of 0 and 1; shape (A,)."""
    return (losses * mask).sum(1) / mask.sum(1)


@dataclass(frozen=True, slots=True)
class Loss:
    """One loss value per example.

    `count`: softmax cross-entropy of the spike counts. `rate`: of counts / T. `step`: of each step's spikes, averaged
    over steps. `mse_count`: squared distance of the counts to T times a wanted rate, averaged over classes, over T.
    """

    name: LossName
    correct_rate: float
    """Wanted rate of the right class, for `mse_count`."""
    incorrect_rate: float
    """Wanted rate of the other classes, for `mse_count`."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Map outputs (T, b, C) and classes (b,) int64 to losses (b,)."""
        steps, _, classes = outputs.shape
        if self.name == "step":
            repeated = labels.repeat(steps)
            return F.cross_entropy(outputs.flatten(0, 1), repeated, reduction="none").view(steps, -1).mean(0)
        counts = outputs.sum(0)
        if self.name == "mse_count":
            return torch.square(counts - steps * self._wanted(labels, classes).to(counts.dtype)).mean(1) / steps
        return F.cross_entropy(counts if self.name == "count" else counts / steps, labels, reduction="none")

    def errors(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss's negative gradient at each output, up to a positive constant.

        For the cross-entropies onehot(y) - softmax of what they read (`step`: mean over steps); for `mse_count` the
        wanted minus the mean rate. From outputs (T, b, C) and classes (b,) int64 to (b, C), in [-1, 1].
        """
        classes = outputs.shape[-1]
        if self.name == "mse_count":
            return self._wanted(labels, classes).to(outputs.dtype) - outputs.mean(0)
        read = {"step": outputs, "rate": outputs.mean(0, keepdim=True)}.get(self.name, outputs.sum(0, keepdim=True))
        return F.one_hot(labels, classes).to(outputs.dtype) - read.softmax(-1).mean(0)

    def _wanted(self, labels: Tensor, classes: int) -> Tensor:
        """Return the target rates, (b, C)."""
        return F.one_hot(labels, classes) * (self.correct_rate - self.incorrect_rate) + self.incorrect_rate
