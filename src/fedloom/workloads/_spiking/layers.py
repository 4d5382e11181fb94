"""Layers over time: synapses, normalisation, neurons, pooling, and a trace of their activity.

Everything between layers has shape (T, b, ...); a leading 1 stands for an input that is the same in every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads._spiking.neurons import Neurons


@dataclass(slots=True)
class Trace:
    """Activity of one pass, by layer, in order. Tensors are the pass's own, nothing is computed from them here."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """Inputs of each layer's synapses, (T or 1, b, ...)."""
    products: dict[str, int] = field(default_factory=dict)
    """Products of weights and inputs of each layer, for one example and one step."""
    spikes: dict[str, Tensor] = field(default_factory=dict)
    """Spikes of each spiking layer before pooling, (T, b, ...)."""


def over_time(module: nn.Module, x: Tensor) -> Tensor:
    """Apply a module without time to all steps together."""
    out: Tensor = module(x.flatten(0, 1))
    return out.view(*x.shape[:2], *out.shape[1:])


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear maps of G clients: (G, rows, in) by (G, out, in) and (G, out) to (G, rows, out).

    One client uses the same kernel as many. Its rows then have the same bits, and a spike never depends
    on which program computed its current.
    """
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


class GroupNorm(nn.GroupNorm):
    """Group normalisation of each step by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """(T, b, c, h, w) to the same shape."""
        return super().forward(x.flatten(0, 1)).view(x.shape)


class BatchNormThroughTime(nn.Module):
    """Batch normalisation with statistics and a factor for each time step, and no offset.

    Kim and Panda 2021, "Revisiting Batch Normalization for Training Low-Latency Deep Spiking Neural Networks From
    Scratch". Every step is a set of channels of its own in one call of torch's kernel. There is no counter of batches:
    no computation reads it and its mean is meaningless.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, time_steps: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self._time_steps, self._momentum, self._epsilon = time_steps, momentum, epsilon
        self.weight = nn.Parameter(torch.ones(time_steps, channels))
        self.register_buffer("running_mean", torch.zeros(time_steps, channels))
        self.register_buffer("running_var", torch.ones(time_steps, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(T or 1, b, c, h, w) to (T, b, c, h, w)."""
        x = x.expand(self._time_steps, *x.shape[1:])
        by_step = x.transpose(0, 1).flatten(1, 2)  # (b, T c, h, w)
        out = F.batch_norm(
            by_step,
            self.running_mean.view(-1),
            self.running_var.view(-1),
            self.weight.view(-1),
            None,
            self.training,
            self._momentum,
            self._epsilon,
        )
        return out.view(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)


class Layer(nn.Module):
    """Synapses, normalisation, neurons, pooling.

    Args:
        name: for the trace.
        synapses: linear map or convolution of one step's input; a linear map reads it flattened.
        neurons: `Neurons`, or for a non-spiking twin ReLU (identity at the output).
        norm: over time, between synapses and neurons.
        pool: of one step, after the neurons.
    """

    def __init__(
        self,
        name: str,
        synapses: nn.Linear | nn.Conv2d,
        neurons: nn.Module,
        norm: nn.Module | None = None,
        pool: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.synapses, self.norm, self.neurons, self.pool = synapses, norm, neurons, pool

    def forward(self, x: Tensor, trace: Trace, extra: Tensor | None = None) -> Tensor:
        """(T or 1, b, ...) to (T, b, ...); `extra` is a current added before the neurons."""
        if isinstance(self.synapses, nn.Linear):
            x = x.flatten(2)
            one = (x.flatten(0, 1), self.synapses.weight, self.synapses.bias)
            current = stacked_linear(*(tensor.unsqueeze(0) for tensor in one)).view(*x.shape[:2], -1)
        else:
            current = over_time(self.synapses, x)
        trace.inputs[self.name] = x
        trace.products[self.name] = current[0, 0].numel() * self.synapses.weight[0].numel()
        if self.norm is not None:
            current = self.norm(current)
        if extra is not None:
            current = current + extra
        out: Tensor = self.neurons(current)
        if isinstance(self.neurons, Neurons):
            trace.spikes[self.name] = out
        return out if self.pool is None else over_time(self.pool, out)


class Block(nn.Module):
    """Two layers and a shortcut whose spikes are added to the second's current.

    If the size changes the shortcut subsamples and pads with zeros (He et al. 2016, section 4.2, option A).
    """

    def __init__(self, first: Layer, second: Layer, stride: int, pad: int) -> None:
        super().__init__()
        self.first, self.second = first, second
        self._stride, self._pad = stride, pad

    def forward(self, x: Tensor, trace: Trace) -> Tensor:
        """(T, b, c, h, w) to (T, b, c + pad, h / stride, w / stride)."""
        shortcut = x[..., :: self._stride, :: self._stride] if self._stride > 1 else x
        shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self._pad))
        out: Tensor = self.second(self.first(x, trace), trace, extra=shortcut)
        return out
