"""The loss of a rendered picture: absolute difference, and structural dissimilarity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
"""The Gaussian window of the structural similarity, pixels."""


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean structural similarity of two pictures (height, width, 3) with values in [0, 1].

    Beyond the border the pictures are 0, as in 3DGS.
    """
    steps = torch.arange(WINDOW, dtype=first.dtype, device=first.device) - WINDOW // 2
    window = torch.exp(-(steps**2) / (2 * SIGMA**2))
    window = window / window.sum()

    def blurred(pictures: Tensor) -> Tensor:
        across = F.conv2d(pictures, window.view(1, 1, 1, -1), padding=(0, WINDOW // 2))
        return F.conv2d(across, window.view(1, 1, -1, 1), padding=(WINDOW // 2, 0))

    x, y = (each.permute(2, 0, 1)[:, None] for each in (first, second))
    mean_x, mean_y, xx, yy, xy = blurred(torch.cat([x, y, x * x, y * y, x * y])).split(3)
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    values: Tensor = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return values.mean()


def picture_loss(rendered: Tensor, photograph: Tensor, dissimilarity: float = 0.2) -> Tensor:
    """Return (1 - d) L1 + d (1 - SSIM) of two pictures (height, width, 3), with d the weight of the dissimilarity."""
    loss = (1 - dissimilarity) * (rendered - photograph).abs().mean()
    return loss + dissimilarity * (1 - ssim(rendered, photograph)) if dissimilarity else loss


def psnr(rendered: Tensor, photograph: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of a picture, limited to [0, 1]; at most 100."""
    error = float(((rendered.clamp(0, 1) - photograph).double() ** 2).mean())
    return 100.0 if error <= 1e-10 else float(-10 * torch.log10(torch.tensor(error, dtype=torch.float64)))
