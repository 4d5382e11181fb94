"""Continuous flows: dx/dt = v(x, t), d ln p/dt = -tr(dv/dx); flow matching learns v without solving it in training."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedloom.workloads.generative.flow import normal_log_prob
from fedloom.workloads.generative.member import Batch, Form, Member
from fedloom.workloads.generative.nets import TimeNet
from fedloom.workloads.generative.noise import Noise

Velocity = Callable[[Tensor, Tensor], Tensor]
"""v of x (b, D) and t (b,), (b, D)."""


def integrated(velocity: Velocity, x: Tensor, start: float, stop: float, steps: int) -> Tensor:
    """Return x moved from one time to another by the midpoint rule, (b, D)."""
    step = (stop - start) / steps
    for place in range(steps):
        t = torch.full_like(x[:, 0], start + place * step)
        middle = x + 0.5 * step * velocity(x, t)
        x = x + step * velocity(middle, t + 0.5 * step)
    return x


def integrated_with_trace(
    velocity: Velocity, x: Tensor, start: float, stop: float, steps: int, probes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return x moved as `integrated` does, and the integral of tr(dv/dx) along its way, (b,).

    Args:
        velocity: v.
        x: the start, (b, D).
        start: first time.
        stop: last time.
        steps: midpoint steps.
        probes: signs (b, D) of Hutchinson's estimate e' (dv/dx) e, unbiased; None sums the diagonal exactly.
    """
    step, total = (stop - start) / steps, torch.zeros_like(x[:, 0])
    for place in range(steps):
        t = torch.full_like(x[:, 0], start + place * step)
        with torch.no_grad():
            middle = x + 0.5 * step * velocity(x, t)
        moved, trace = _with_trace(velocity, middle, t + 0.5 * step, probes)
        x, total = x + step * moved, total + step * trace
    return x, total


def _with_trace(velocity: Velocity, x: Tensor, t: Tensor, probes: Tensor | None) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        x, t = x.clone().requires_grad_(), t.clone()
        v = velocity(x, t)
        if probes is not None:
            (pulled,) = torch.autograd.grad(v, x, probes.clone())
            return v.detach(), (pulled * probes).sum(1).detach()
        trace = torch.zeros_like(t)
        for place in range(x.shape[1]):
            (row,) = torch.autograd.grad(v[:, place].sum(), x, retain_graph=True)
            trace = trace + row[:, place]
        return v.detach(), trace.detach()


def signs(noise: Noise, dims: int) -> Tensor:
    """Return Rademacher probes, (b, D)."""
    return (noise.uniform(dims) - 0.5).sign()


class FlowMatching(Member):
    """Flow matching (Lipman et al. 2023) on lines x_t = (1 - t) e + t y: v* = y - e, loss E |v(x_t, t) - v*|^2.

    y is the dequantised image from -1 to 1, e standard normal. The density is estimated: the flow is solved in steps,
    the trace by Hutchinson's estimate.

    Args:
        form: the images.
        hidden: units of the network.
        blocks: its residual blocks.
        steps: midpoint steps of a sample and of a density.
    """

    rate = 3.0

    def __init__(self, form: Form, hidden: int, blocks: int, steps: int) -> None:
        super().__init__(form)
        self._steps = steps
        self.net = TimeNet(form.dims, hidden, blocks)

    def loss(self, batch: Batch) -> Tensor:
        y = 2.0 * self.form.dequantised(batch.x, batch.noise) - 1.0
        e, t = batch.noise.normal(self.form.dims), batch.noise.uniform(1)
        found: Tensor = self.net((1.0 - t) * e + t * y, t[:, 0])
        return (found - (y - e)).square().mean()

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """Return ln N(e) - the integral of tr(dv/dx) + D ln 2 - D ln M, an estimate, (b,)."""
        y = 2.0 * self.form.dequantised(x, noise) - 1.0
        e, trace = integrated_with_trace(self.net, y, 1.0, 0.0, self._steps, signs(noise, self.form.dims))
        # from t = 1 down to 0: ln p(y) = ln N(e) - int_0^1 tr dt = ln N(e) + int_1^0 tr dt
        return normal_log_prob(e) + trace + self.form.dims * (math.log(2.0) - math.log(self.form.levels))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        e = torch.randn(count, self.form.dims, generator=generator, device=generator.device)
        return self.form.quantised(0.5 * (integrated(self.net, e, 0.0, 1.0, self._steps) + 1.0))
