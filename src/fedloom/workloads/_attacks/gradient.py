"""Attacks that follow the gradient's sign: one step (FGSM) or many with projections (PGD)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from fedloom.workloads._attacks.losses import AttackLoss, cross_entropy

Start = Literal["clean", "uniform", "normal"]
"""Start of PGD: at x, uniformly in the ball, or at x + 0.001 N(0, 1) as in TRADES."""
_NORMAL_SCALE = 0.001


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float) -> Tensor:
    """Take one step: x + epsilon * sign(gradient of the cross-entropy), clipped to [0, 1].

    Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples", section 4.
    """
    return pgd(model, x, y, epsilon=epsilon, step_size=epsilon, steps=1, start="clean")


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    start: Start = "uniform",
    loss: AttackLoss = cross_entropy,
) -> Tensor:
    """Projected gradient ascent: x' <- clip(project(x' + alpha * sign(gradient of the loss))).

    Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", section 2.1.

    Args:
        model: from images to logits.
        x: images in [0, 1].
        y: labels.
        epsilon: radius of the ball; units of a pixel's range.
        step_size: alpha; likewise.
        steps: gradient steps; 0 returns the start.
        start: the start point.
        loss: the objective to increase.

    Returns:
        The last iterate, detached.
    """
    low, high = (x - epsilon).clamp_(min=0.0), (x + epsilon).clamp_(max=1.0)
    moved = _started(x, epsilon, start).clamp_(low, high)
    for _ in range(steps):
        moved.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(model(moved), y), moved)
        moved = moved.detach().add_(gradient.sign_(), alpha=step_size).clamp_(low, high)
    return moved


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set the model to evaluation mode, restored afterwards: attacks are made against running statistics."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _started(x: Tensor, epsilon: float, start: Start) -> Tensor:
    if start == "uniform":
        return x + torch.empty_like(x).uniform_(-epsilon, epsilon)
    return x + _NORMAL_SCALE * torch.randn_like(x) if start == "normal" else x.clone()
