"""Adversarial weight perturbation: the worst weights nearby, for one step.

Wu et al. 2020, "Adversarial Weight Perturbation Helps Robust Generalization", equations 9 and 10: v_l = gamma *
||w_l|| * g_l / ||g_l|| for every layer l, g being the gradient of the adversarial loss. The step's gradient is then
taken at w + v, and v is taken away after the step. Only weights with more than one dimension are perturbed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedloom.workloads._torch.statistics import frozen_statistics

_TINY = 1e-20


def perturbation(model: nn.Module, loss: Callable[[], Tensor], gamma: float) -> dict[str, Tensor]:
    """Return every perturbed parameter's v, by name; the model's weights, gradients and statistics are unchanged."""
    layers = {name: p for name, p in model.named_parameters() if p.ndim > 1 and name.endswith("weight")}
    with frozen_statistics(model), torch.enable_grad():
        gradients = torch.autograd.grad(loss(), list(layers.values()))
    return {
        name: gamma * layer.detach().norm() / (gradient.norm() + _TINY) * gradient
        for (name, layer), gradient in zip(layers.items(), gradients, strict=True)
    }


def shift(model: nn.Module, perturbation: dict[str, Tensor], sign: float) -> None:
    """Add (or subtract) a perturbation in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, change in perturbation.items():
            parameters[name].add_(change, alpha=sign)
