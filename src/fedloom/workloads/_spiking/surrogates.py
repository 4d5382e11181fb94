"""Spikes with a surrogate derivative: forward the step function, backward a smooth function.

The distance to the threshold is u = U - θ. A spike is u > 0, strictly, so a membrane that just reaches the threshold
stays silent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedloom.workloads._spiking.settings import SURROGATE_CONSTANTS, NeuronSettings

Derivative = Callable[[Tensor], Tensor]
"""Maps distances u to the surrogate of ds/du, same shape and dtype; a new tensor."""


def make_derivative(settings: NeuronSettings) -> Derivative:
    """Return the surrogate of the settings.

    `atan`: (α/2) / (1 + (π α u / 2)²), Fang et al. 2021, "Incorporating Learnable Membrane Time Constants".
    `fast_sigmoid`: 1 / (1 + k |u|)², Zenke and Ganguli 2018, "SuperSpike".
    `triangular`: γ max(0, 1 - |u|), Bellec et al. 2018, "Long short-term memory and learning-to-learn in networks of
    spiking neurons". (The function of that name in snntorch is another one: plus or minus the threshold.)
    `straight_through`: 1.
    """
    constant = settings.surrogate_constant or SURROGATE_CONSTANTS.get(settings.surrogate, 1.0)
    return _DERIVATIVES[settings.surrogate](constant)


def _atan(alpha: float) -> Derivative:
    def derivative(u: Tensor) -> Tensor:
        return u.mul(torch.pi / 2 * alpha).square_().add_(1.0).reciprocal_().mul_(alpha / 2)

    return derivative


def _fast_sigmoid(slope: float) -> Derivative:
    def derivative(u: Tensor) -> Tensor:
        return u.abs().mul_(slope).add_(1.0).square_().reciprocal_()

    return derivative


def _triangular(height: float) -> Derivative:
    def derivative(u: Tensor) -> Tensor:
        return u.abs().neg_().add_(1.0).clamp_(min=0.0).mul_(height)

    return derivative


def _straight_through(_: float) -> Derivative:
    return torch.ones_like


_DERIVATIVES: dict[str, Callable[[float], Derivative]] = {
    "atan": _atan,
    "fast_sigmoid": _fast_sigmoid,
    "triangular": _triangular,
    "straight_through": _straight_through,
}


class Spike(torch.autograd.Function):
    """The step function of u, in u's own dtype, with a surrogate derivative."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, derivative: Derivative) -> Tensor:
        """Return 1 if u > 0, otherwise 0."""
        ctx.save_for_backward(u)
        ctx.derivative = derivative
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the spikes times the surrogate."""
        (u,) = ctx.saved_tensors
        return ctx.derivative(u).mul_(gradients[0]), None


def spike_function(derivative: Derivative) -> Callable[[Tensor], Tensor]:
    """Return the function that snntorch calls `spike_grad`: maps distances to spikes."""

    def spike(u: Tensor) -> Tensor:
        spikes: Tensor = Spike.apply(u, derivative)  # type: ignore[no-untyped-call]
        return spikes

    return spike
