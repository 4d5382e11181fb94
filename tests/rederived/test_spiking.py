"""Neurons a second way: a plain loop over time steps, with the surrogates' derivatives written out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedloom.workloads._spiking.neurons import Neurons
from fedloom.workloads._spiking.settings import NeuronSettings

Slope = Callable[[Tensor], Tensor]
SLOPES: dict[str, tuple[float, Slope]] = {
    "atan": (2.0, lambda u: 1.0 / (1 + (math.pi * u) ** 2)),
    "fast_sigmoid": (25.0, lambda u: 1 / (1 + 25 * u.abs()) ** 2),
    "triangular": (0.3, lambda u: 0.3 * (1 - u.abs()).clamp(min=0)),
}
"""Constant of each surrogate, and its derivative at membrane minus threshold."""


class Spike(torch.autograd.Function):
    """A step forwards, a surrogate's slope backwards."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, u: Tensor, slope: Slope) -> Tensor:
        ctx.save_for_backward(u)
        ctx.slope = slope  # type: ignore[attr-defined] # torch's context takes any attribute
        return (u > 0).float()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors  # type: ignore[attr-defined] # not in torch's types
        return grads[0] * ctx.slope(u), None  # type: ignore[attr-defined] # as above


def loop(drive: Tensor, leak: float, hard: bool, slope: Slope) -> Tensor:
    membrane, spikes = torch.zeros_like(drive[0]), []
    for step in drive:
        membrane = leak * membrane + step
        spike = Spike.apply(membrane - 1.0, slope)  # type: ignore[no-untyped-call] # torch leaves it untyped
        spikes.append(spike)
        membrane = membrane * (1 - spike.detach()) if hard else membrane - spike.detach()
    return torch.stack(spikes)


@pytest.mark.parametrize(("kind", "reset", "name"), list(itertools.product(["if", "lif"], ["soft", "hard"], SLOPES)))
def test_spikes_and_gradients_are_those_of_a_plain_loop(kind: str, reset: str, name: str) -> None:
    torch.manual_seed(3)
    constant, slope = SLOPES[name]
    leak = 1.0 if kind == "if" else 0.9
    settings = NeuronSettings.model_validate(
        {
            "kind": kind,
            "beta": None if kind == "if" else leak,
            "threshold": 1.0,
            "reset": reset,
            "reset_delay": False,
            "surrogate": name,
            "surrogate_constant": constant,
        }
    )
    drive, weights = (0.9 * torch.rand(12, 5, 7)).requires_grad_(), torch.randn(12, 5, 7)
    other = drive.detach().clone().requires_grad_()
    ours, theirs = Neurons(settings, 12)(drive), loop(other, leak, reset == "hard", slope)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert torch.equal(ours, theirs) and 0.05 < ours.mean() < 0.95
    assert drive.grad is not None and other.grad is not None
    torch.testing.assert_close(drive.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_a_drive_of_six_tenths_fires_every_other_step() -> None:
    settings = NeuronSettings(kind="if", threshold=1.0, reset="soft", reset_delay=False)
    # 0.6, 1.2 (fires, 0.2 is left), 0.8, 1.4 (fires)
    assert Neurons(settings, 4)(torch.full((4, 1, 1), 0.6)).flatten().tolist() == [0.0, 1.0, 0.0, 1.0]
