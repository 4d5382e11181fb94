"""Objectives of attacks: losses summed over a batch, so that each image's gradient is its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

AttackLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (b, classes) and labels (b,) to a scalar that rises as the labels become less likely."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the batch of -ln p_y."""
    return F.cross_entropy(logits, labels, reduction="sum")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over the batch of max_{c != y} z_c - z_y.

    Carlini and Wagner 2017, "Towards Evaluating the Robustness of Neural Networks", f_6 without its confidence floor:
    the loss of the PGD attack known as CW-infinity.
    """
    right = F.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(right, -torch.inf).amax(1)
    return (others - logits.gather(1, labels[:, None])[:, 0]).sum()


def divergence_from(reference: Tensor) -> AttackLoss:
    """Return a loss: the sum over the batch of KL(softmax(reference) || softmax(logits)), independent of labels.

    Zhang et al. 2019 (TRADES), equation 4: the loss of its attack; `reference` are the clean images' logits.
    """
    target = reference.detach().log_softmax(1)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.kl_div(logits.log_softmax(1), target, reduction="sum", log_target=True)

    return loss
