"""Local optimisers without bookkeeping: lists of tensors, updated in place.

The arithmetic is that of `torch.optim`; without parameter groups, hooks and state dictionaries, which cost
more than a small model's step. Buffers are created once and reset, never carried from one client to the next.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fedloom.workloads._torch.settings import TrainingSettings


class Optimizer(Protocol):
    """A rule that moves parameters along their gradients."""

    base_rate: float
    """Step size without a schedule."""
    rate: float
    """Step size now."""

    def reset(self) -> None:
        """Reset all state: a new client begins."""

    def step(self, gradients: list[Tensor]) -> None:
        """Move the parameters; the gradients may be changed."""


class Sgd:
    """Stochastic gradient descent with L2 penalty, momentum and Nesterov's form, as in `torch.optim.SGD`."""

    def __init__(self, parameters: list[Tensor], settings: TrainingSettings) -> None:
        self._parameters, self._settings = parameters, settings
        self.velocity = [torch.empty_like(p) for p in parameters] if settings.momentum else []
        self.base_rate = self.rate = settings.learning_rate
        self._fresh = True

    def reset(self) -> None:
        self._fresh = True

    def resume(self, velocity: list[Tensor]) -> None:
        """Continue with the momentum at the end of an earlier training; its tensors are copied."""
        torch._foreach_copy_(self.velocity, velocity)
        self._fresh = False

    def step(self, gradients: list[Tensor]) -> None:
        settings, direction = self._settings, gradients
        if settings.weight_decay:
            torch._foreach_add_(gradients, self._parameters, alpha=settings.weight_decay)
        if self.velocity:
            if self._fresh:
                torch._foreach_copy_(self.velocity, gradients)
                self._fresh = False
            else:
                torch._foreach_mul_(self.velocity, settings.momentum)
                torch._foreach_add_(self.velocity, gradients)
            if settings.nesterov:
                torch._foreach_add_(gradients, self.velocity, alpha=settings.momentum)
            else:
                direction = self.velocity
        torch._foreach_add_(self._parameters, direction, alpha=-self.rate)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, Algorithm 2), as in `torch.optim.AdamW`."""

    def __init__(self, parameters: list[Tensor], settings: TrainingSettings) -> None:
        self._parameters, self._settings = parameters, settings
        self._first = [torch.empty_like(p) for p in parameters]
        self._second = [torch.empty_like(p) for p in parameters]
        self.base_rate = self.rate = settings.learning_rate
        self._step = 0

    def reset(self) -> None:
        self._step = 0
        torch._foreach_zero_(self._first)
        torch._foreach_zero_(self._second)

    def step(self, gradients: list[Tensor]) -> None:
        settings, self._step = self._settings, self._step + 1
        beta1, beta2, rate = settings.beta1, settings.beta2, self.rate
        if settings.weight_decay:
            torch._foreach_mul_(self._parameters, 1.0 - rate * settings.weight_decay)
        torch._foreach_lerp_(self._first, gradients, 1.0 - beta1)
        torch._foreach_mul_(self._second, beta2)
        torch._foreach_addcmul_(self._second, gradients, gradients, 1.0 - beta2)
        scale = torch._foreach_sqrt(self._second)
        torch._foreach_div_(scale, (1.0 - beta2**self._step) ** 0.5)
        torch._foreach_add_(scale, settings.epsilon)
        torch._foreach_addcdiv_(self._parameters, self._first, scale, -rate / (1.0 - beta1**self._step))


def make_optimizer(parameters: list[Tensor], settings: TrainingSettings) -> Optimizer:
    """Return the optimiser of the settings, over these parameters."""
    kinds: dict[str, type[Sgd] | type[AdamW]] = {"sgd": Sgd, "adamw": AdamW}
    return kinds[settings.optimizer](parameters, settings)


def clip_by_norm(gradients: list[Tensor], limit: float) -> None:
    """Scale all gradients by min(1, limit / (norm + 1e-6)), norm over all of them, as `clip_grad_norm_` does."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, torch.clamp(limit / (norm + 1e-6), max=1.0))
