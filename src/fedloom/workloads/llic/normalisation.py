"""Generalised divisive normalisation (Ballé et al. 2016), in the reparametrised form that keeps it positive."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PEDESTAL = 2.0**-36
_LEAST_BETA = 1e-6
_START_GAMMA = 0.1


class LowerBound(torch.autograd.Function):
    """max(x, bound), whose gradient passes below the bound where it would raise x."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, bound: float) -> Tensor:
        """Return max(x, bound), in x's shape."""
        ctx.save_for_backward(x)
        ctx.bound = bound  # type: ignore[attr-defined]  # torch's own way to keep what is no tensor
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *outputs: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of x."""
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]  # torch declares it for subclasses only
        (gradient,) = outputs
        passes = (x >= ctx.bound) | (gradient < 0)  # type: ignore[attr-defined]
        return gradient * passes, None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """Return max(x, bound); where x is below it, only gradients that raise x pass."""
    found: Tensor = LowerBound.apply(x, bound)  # type: ignore[no-untyped-call]  # torch declares no types for it
    return found


class GDN(nn.Module):
    """y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2); inverse: x_i * sqrt(…).

    What is stored, and averaged over clients, is sqrt(beta + 2^-36) and sqrt(gamma + 2^-36).

    Args:
        channels: C.
        inverse: multiply instead of divide.
    """

    def __init__(self, channels: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.sqrt(torch.ones(channels) + _PEDESTAL))
        self.gamma = nn.Parameter(torch.sqrt(_START_GAMMA * torch.eye(channels) + _PEDESTAL))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise features (b, C, h, w)."""
        beta = lower_bound(self.beta, (_LEAST_BETA + _PEDESTAL) ** 0.5).square() - _PEDESTAL
        gamma = lower_bound(self.gamma, _PEDESTAL**0.5).square() - _PEDESTAL
        norm = F.conv2d(x.square(), gamma[:, :, None, None], beta)
        return x * torch.sqrt(norm) if self.inverse else x * torch.rsqrt(norm)
