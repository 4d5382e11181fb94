"""Losses on the spikes of the output layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.workloads._spiking.settings import LossName


def masked_means(losses: Tensor, mask: Tensor) -> Tensor:
    """Mean of each client's losses (A, b) over the examples its mask (A, b) of ones and zeros counts; shape (A,)."""
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
        """From outputs (T, b, C) and classes (b,) int64 to losses (b,)."""
        steps, _, classes = outputs.shape
        if self.name == "step":
            repeated = labels.repeat(steps)
            return F.cross_entropy(outputs.flatten(0, 1), repeated, reduction="none").view(steps, -1).mean(0)
        counts = outputs.sum(0)
        if self.name == "mse_count":
            hot = F.one_hot(labels, classes).to(counts.dtype)
            wanted = hot * (self.correct_rate - self.incorrect_rate) + self.incorrect_rate
            return torch.square(counts - steps * wanted).mean(1) / steps
        return F.cross_entropy(counts if self.name == "count" else counts / steps, labels, reduction="none")
