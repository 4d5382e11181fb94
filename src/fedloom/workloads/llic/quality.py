"""How near a decoded image is to the original: PSNR and MS-SSIM."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW = 11
_SIGMA = 1.5
LEAST_SIDE = (_WINDOW - 1) * 2 ** (len(_WEIGHTS) - 1) + 1
"""Shortest side that MS-SSIM is defined for; pixels."""


def psnr(mse: float) -> float:
    """Return the peak signal-to-noise ratio of 8-bit values; dB, infinite without an error."""
    return 10.0 * math.log10(255.0**2 / mse) if mse > 0 else math.inf


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Return the multi-scale structural similarity (Wang et al. 2003) of images from 0 to 1, the mean over all.

    Args:
        x: (b, c, H, W), sides of at least 161 pixels.
        y: the originals, likewise.
    """
    found = x.new_ones(x.shape[:2])
    for scale, weight in enumerate(_WEIGHTS):
        if scale:
            filled = [side % 2 for side in x.shape[2:]]
            x, y = (F.avg_pool2d(each, 2, padding=filled) for each in (x, y))
        structure, luminance = _terms(x, y)
        part = structure * luminance if scale == len(_WEIGHTS) - 1 else structure
        found = found * part.mean((2, 3)).clamp_min(0.0) ** weight
    return found.mean()


def _terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maps of contrast with structure, and of luminance."""
    first, second = 0.01**2, 0.03**2
    mean_x, mean_y = _blurred(x), _blurred(y)
    spread_x, spread_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    common = _blurred(x * y) - mean_x * mean_y
    structure = (2 * common + second) / (spread_x + spread_y + second)
    return structure, (2 * mean_x * mean_y + first) / (mean_x**2 + mean_y**2 + first)


def _blurred(x: Tensor) -> Tensor:
    place = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    weights = torch.exp(-(place**2) / (2 * _SIGMA**2))
    kernel = (weights / weights.sum()).expand(x.shape[1], 1, 1, _WINDOW)
    x = F.conv2d(x, kernel, groups=x.shape[1])
    return F.conv2d(x, kernel.transpose(2, 3), groups=x.shape[1])
