"""The spiking MLP of many clients together: weights stacked, matrix products batched, time unrolled in one graph.

G clients, T time steps, b examples of each client, n neurons of a layer. Between layers everything is (G, T, b, n), so
that one batched product serves all steps of all clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedloom.workloads._spiking.layers import stacked_linear
from fedloom.workloads._spiking.neurons import Dynamics


class Fire(torch.autograd.Function):
    """A layer of neurons over all steps: `neurons.Neurons` with the steps' backward passes written out.

    Forward, with R the last step's spikes: U[t] = β U[t-1] + I[t] - θ R for a delayed soft reset, and so on; the
    operations and their order are the cell's. Backward, with h the surrogate and resets taken as constants:
    g[t] = ds[t] h(U[t] - θ) + β k[t] g[t+1], where k is 1 for soft and 1 - s[t] for hard reset; dI = g.
    """

    @staticmethod
    def forward(ctx: Any, current: Tensor, time_steps: int, dynamics: Dynamics) -> Tensor:
        """Map currents (G, T or 1, b, n) to spikes (G, T, b, n)."""
        groups, given, *rest = current.shape
        membranes = current.new_empty((groups, time_steps, *rest))
        spikes = torch.empty_like(membranes)
        for step in range(time_steps):
            now, fired, drive = membranes[:, step], spikes[:, step], current[:, step if given > 1 else 0]
            if step == 0:
                now.copy_(drive)
            else:
                _advance(now, membranes[:, step - 1], spikes[:, step - 1], drive, dynamics)
            torch.gt(now, dynamics.threshold, out=fired)
        ctx.save_for_backward(membranes, spikes)
        ctx.dynamics, ctx.constant = dynamics, given == 1 and time_steps > 1
        return spikes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the currents."""
        membranes, spikes = ctx.saved_tensors
        dynamics: Dynamics = ctx.dynamics
        gradient = dynamics.derivative(membranes - dynamics.threshold).mul_(gradients[0])
        for step in range(membranes.shape[1] - 2, -1, -1):
            later = gradient[:, step + 1]
            if dynamics.beta != 1.0:
                later = later * dynamics.beta  # not as add_'s alpha: that rounds once, the plain loop twice
            if dynamics.hard:
                later = later * (1.0 - spikes[:, step])
            gradient[:, step].add_(later)
        if not ctx.constant:
            return gradient, None, None
        total = gradient[:, -1:].clone()
        for step in range(gradient.shape[1] - 2, -1, -1):  # last step first, as the plain loop's graph adds them
            total.add_(gradient[:, step : step + 1])
        return total, None, None


def _advance(now: Tensor, before: Tensor, fired: Tensor, drive: Tensor, dynamics: Dynamics) -> None:
    """Write the next membrane into `now`."""
    if dynamics.hard:
        torch.mul(before, 1.0 - fired, out=now)
    elif not dynamics.delayed:
        torch.sub(before, fired * dynamics.threshold, out=now)
    else:
        now.copy_(before)
    if dynamics.beta != 1.0:
        now.mul_(dynamics.beta)
    now.add_(drive)
    if dynamics.delayed and not dynamics.hard:
        now.sub_(fired * dynamics.threshold)


def stacked_spikes(weights: Sequence[Tensor], x: Tensor, time_steps: int, dynamics: Dynamics) -> list[Tensor]:
    """Return the spikes of every layer of every client.

    Args:
        weights: for each layer its weights (G, out, in) and biases (G, out), in turn.
        x: encoded examples, shape (G, T, b, in), or (G, 1, b, in) for currents that do not change.
        time_steps: T.
        dynamics: of the neurons.

    Returns:
        For each layer its spikes (G, T, b, out), in the precision of the weights.
    """
    spikes: list[Tensor] = []
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        current = stacked_linear(x.flatten(1, 2), weight, bias).view(*x.shape[:3], -1)
        x = Fire.apply(current, time_steps, dynamics)  # type: ignore[no-untyped-call]
        spikes.append(x)
    return spikes
