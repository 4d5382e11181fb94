"""Objectives of adversarial training: the attack on a batch, and the loss on it.

x: clean images in [0, 1], (b, c, h, w); x': adversarial ones; y: labels (b,); f: logits; p: probabilities (b, classes).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.strategies.meat.workload.config import AttackSettings, DefenseSettings
from fedloom.workloads._attacks.gradient import evaluating, pgd
from fedloom.workloads._attacks.losses import AttackLoss, cross_entropy, divergence_from

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""Mean loss of a batch, from the model, x, x' and y."""


def perturbed(model: nn.Module, x: Tensor, y: Tensor, attack: AttackSettings, defense: DefenseSettings) -> Tensor:
    """Return x', made against the model in evaluation mode.

    PGD on the cross-entropy; from a uniform start for `at`, near x for the others; TRADES climbs the divergence from
    the clean prediction instead. `none` returns x.
    """
    if defense.name == "none":
        return x
    with evaluating(model):
        loss: AttackLoss = cross_entropy
        if defense.name == "trades":
            with torch.no_grad():
                loss = divergence_from(model(x))
        return pgd(
            model,
            x,
            y,
            epsilon=attack.epsilon,
            step_size=attack.step_size,
            steps=attack.steps,
            start="uniform" if defense.name == "at" else "normal",
            loss=loss,
        )


def loss_of(defense: DefenseSettings) -> Loss:
    """Return the defence's loss."""
    return {"none": _adversarial, "at": _adversarial, "trades": _trades, "mart": _mart}[defense.name](
        defense.second_weight
    )


def _adversarial(weight: float) -> Loss:
    """CE(f(x'), y). Madry et al. 2018, equation 2.1."""

    def loss(model: nn.Module, x: Tensor, moved: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(moved), y)

    return loss


def _trades(weight: float) -> Loss:
    """CE(f(x), y) + beta * KL(p(x) || p(x')). Zhang et al. 2019, "Theoretically Principled Trade-off", equation 5."""

    def loss(model: nn.Module, x: Tensor, moved: Tensor, y: Tensor) -> Tensor:
        clean, attacked = model(x), model(moved)
        divergence = F.kl_div(attacked.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)
        return F.cross_entropy(clean, y) + weight * divergence

    return loss


def _mart(weight: float) -> Loss:
    """BCE(p(x'), y) + lambda * KL(p(x) || p(x')) * (1 - p_y(x)), the mean of each image's.

    Wang et al. 2020, "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", equation 11, with
    BCE = -ln p_y(x') - ln(1 - max_{c != y} p_c(x')).
    """

    def loss(model: nn.Module, x: Tensor, moved: Tensor, y: Tensor) -> Tensor:
        clean, attacked = model(x).log_softmax(1), model(moved).log_softmax(1)
        right = F.one_hot(y, attacked.shape[1]).bool()
        likeliest_other = attacked.masked_fill(right, -torch.inf).amax(1).exp()
        boosted = -attacked[right] - torch.log1p(-likeliest_other.clamp(max=1.0 - 1e-6))
        divergence = (clean.exp() * (clean - attacked)).sum(1)
        each: Tensor = boosted + weight * divergence * (1.0 - clean[right].exp())
        return each.mean()

    return loss
