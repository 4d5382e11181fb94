"""The factorised prior of the hyper-latent (Ballé et al. 2018): one learned density for each channel."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads.llic.normalisation import lower_bound

_WIDTHS = (1, 3, 3, 3, 3, 1)
_SCALE = 10.0
_TAIL = 1e-9
"""Mass outside the outer quantiles."""
LEAST = 1e-9
"""Likelihoods are at least this."""


class FactorisedPrior(nn.Module):
    """p(z_c) as a monotonic network's difference; its quantiles have a loss of their own.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        scale = _SCALE ** (1 / (len(_WIDTHS) - 1))
        for inputs, outputs in pairwise(_WIDTHS):
            start = float(torch.log(torch.expm1(torch.tensor(1 / scale / outputs))))
            self.matrices.append(nn.Parameter(torch.full((channels, outputs, inputs), start)))
            self.biases.append(nn.Parameter(torch.empty(channels, outputs, 1).uniform_(-0.5, 0.5)))
            if outputs > 1:
                self.factors.append(nn.Parameter(torch.zeros(channels, outputs, 1)))
        self.quantiles = nn.Parameter(torch.tensor([-_SCALE, 0.0, _SCALE]).repeat(channels, 1))
        """(C, 3): where the cumulative mass is 1e-9 / 2, 1 / 2 and 1 - 1e-9 / 2."""

    @property
    def medians(self) -> Tensor:
        """Return the medians, (C,), without gradient."""
        return self.quantiles[:, 1].detach()

    def logits(self, z: Tensor, *, frozen: bool = False) -> Tensor:
        """Return the logits of the cumulative distribution at z, (C, n); `frozen` passes no gradient to its weights."""
        x = z[:, None, :]
        for place, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            matrix, bias = (matrix.detach(), bias.detach()) if frozen else (matrix, bias)
            x = F.softplus(matrix) @ x + bias
            if place < len(self.factors):
                factor = self.factors[place].detach() if frozen else self.factors[place]
                x = x + torch.tanh(factor) * torch.tanh(x)
        return x[:, 0, :]

    def likelihood(self, z: Tensor) -> Tensor:
        """Return the mass of [z - 1/2, z + 1/2], in z's shape (b, C, h, w)."""
        b, c, h, w = z.shape
        flat = z.transpose(0, 1).reshape(c, -1)
        lower, upper = self.logits(flat - 0.5), self.logits(flat + 0.5)
        sign = -torch.sign(lower + upper).detach()
        mass = torch.abs(torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower))
        return lower_bound(mass, LEAST).reshape(c, b, h, w).transpose(0, 1)

    def quantile_loss(self) -> Tensor:
        """Return the sum of |logits - targets| at the quantiles; its gradient reaches the quantiles alone."""
        edge = float(torch.logit(torch.tensor(_TAIL / 2, dtype=torch.float64)))
        targets = torch.tensor([edge, 0.0, -edge], device=self.quantiles.device, dtype=self.quantiles.dtype)
        return (self.logits(self.quantiles, frozen=True) - targets).abs().sum()
