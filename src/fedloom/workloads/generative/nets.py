"""Small networks that several families are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(inputs: int, hidden: Sequence[int], outputs: int, *, zero_last: bool = False) -> nn.Sequential:
    """Return a perceptron with SiLU between its layers; with `zero_last` its output is 0 at first."""
    sizes, layers = [inputs, *hidden, outputs], list[nn.Module]()
    for low, high in pairwise(sizes):
        layers += [nn.Linear(low, high), nn.SiLU()]
    layers.pop()
    last = layers[-1]
    if zero_last and isinstance(last, nn.Linear):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers)


class MaskedLinear(nn.Linear):
    """A linear layer some of whose weights are always 0.

    Args:
        mask: 1 for weights that exist, (outputs, inputs).
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, (b, outputs)."""
        return F.linear(x, self.weight * self.mask, self.bias)


class MaskedMlp(nn.Module):
    """MADE's network (Germain et al. 2015): the outputs of input i depend on earlier inputs only.

    Inputs have degrees 1 to D, hidden units degrees 1 to D - 1 in turn; a unit sees what has no higher degree, an
    output of input i what has a lower one than i.

    Args:
        dims: inputs D.
        hidden: units of each hidden layer.
        outputs: outputs for each input.
        width: numbers that each input consists of.
        reverse: whether the last input is the first in the order.
    """

    def __init__(
        self, dims: int, hidden: Sequence[int], outputs: int, *, width: int = 1, reverse: bool = False
    ) -> None:
        super().__init__()
        self.dims, self.outputs = dims, outputs
        order = torch.arange(1, dims + 1)
        order = order.flip(0) if reverse else order
        layers, degrees = list[nn.Module](), order.repeat_interleave(width)
        for size in hidden:
            following = torch.arange(size) % max(dims - 1, 1) + 1
            layers += [MaskedLinear(following[:, None] >= degrees[None, :]), nn.SiLU()]
            degrees = following
        layers.append(MaskedLinear((order[:, None] > degrees[None, :]).repeat_interleave(outputs, 0)))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs for each input of x (b, D * width), (b, D, outputs)."""
        out: Tensor = self.layers(x)
        return out.reshape(len(x), self.dims, self.outputs)


class TimeBlock(nn.Module):
    """A residual block of a perceptron that sees the time.

    Args:
        hidden: units.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.time = nn.Linear(hidden, hidden)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """Return h with the block's contribution, (b, hidden)."""
        inner = F.silu(F.layer_norm(h, h.shape[1:])) + self.time(F.silu(time))
        out: Tensor = h + self.outer(F.silu(self.inner(inner)))
        return out


class TimeNet(nn.Module):
    """A residual perceptron of a vector and a time from 0 to 1, used for noise, scores and velocities.

    Args:
        dims: length of the vector D.
        hidden: units.
        blocks: residual blocks.
    """

    frequencies: Tensor

    def __init__(self, dims: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0.0, math.log(1000.0), 16)), persistent=False)
        self.first = nn.Linear(dims, hidden)
        self.time = nn.Sequential(nn.Linear(32, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.blocks = nn.ModuleList(TimeBlock(hidden) for _ in range(blocks))
        self.last = nn.Linear(hidden, dims)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return a vector for each x (b, D) at its time t (b,), (b, D)."""
        angles = t[:, None] * self.frequencies.to(x.dtype)
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        h = self.first(x)
        for block in self.blocks:
            h = block(h, time)
        out: Tensor = self.last(F.silu(h))
        return out


def convolutions(height: int, width: int, outputs: int, channels: int = 32) -> nn.Sequential:
    """Return three convolutions, two of stride 2, and a linear layer: images (b, 1, h, w) to (b, outputs)."""
    flat = 2 * channels * (-(-height // 4)) * (-(-width // 4))
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(2 * channels, 2 * channels, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(flat, outputs),
    )
