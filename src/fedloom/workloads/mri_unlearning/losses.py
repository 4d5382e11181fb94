"""Reconstruction quality in fastMRI's definitions: SSIM, PSNR, NMSE, and the training loss."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 7
"""Side of SSIM's uniform window; pixels."""
_K1, _K2 = 0.01, 0.03


def ssim(image: Tensor, target: Tensor, ranges: Tensor) -> Tensor:
    """Return each image's structural similarity, (b,): uniform 7x7 windows inside the image, unbiased covariance.

    Args:
        image: (b, h, w).
        target: (b, h, w).
        ranges: data range of each image, the maximum of its volume, (b,).
    """
    x, y = image.unsqueeze(1), target.unsqueeze(1)
    window = torch.full((1, 1, WINDOW, WINDOW), 1.0 / WINDOW**2, dtype=x.dtype, device=x.device)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    mean_x, mean_y = F.conv2d(x, window), F.conv2d(y, window)
    var_x = unbiased * (F.conv2d(x * x, window) - mean_x * mean_x)
    var_y = unbiased * (F.conv2d(y * y, window) - mean_y * mean_y)
    cov = unbiased * (F.conv2d(x * y, window) - mean_x * mean_y)
    spread = ranges.to(x.dtype).reshape(-1, 1, 1, 1)
    c1, c2 = (_K1 * spread) ** 2, (_K2 * spread) ** 2
    found = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return (found / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean((1, 2, 3))


def psnr(squared_error: float, top: float) -> float:
    """Return 20 log10(max) - 10 log10(MSE), dB; infinite without an error."""
    return 20.0 * math.log10(top) - 10.0 * math.log10(squared_error) if squared_error > 0 else math.inf


def reconstruction_loss(image: Tensor, target: Tensor, ranges: Tensor, l1_weight: float) -> Tensor:
    """Return J = mean of (1 - SSIM) + weight * L1, without dimensions."""
    return (1.0 - ssim(image, target, ranges)).mean() + l1_weight * F.l1_loss(image, target)
