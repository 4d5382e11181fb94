"""Images moved, mirrored and partly erased at random, for training; drawn from PyTorch's global generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.workloads._vision.augment_settings import AugmentSettings

_PADDING = 4
_SMALLEST = 0.02
"""Least share of an image that is erased (Zhong et al. 2020)."""
_RATIO = math.log(1 / 0.3)
"""Bounds of the logarithm of an erased rectangle's height over width, both ways."""


def augmented(x: Tensor, kind: str) -> Tensor:
    """Return images shifted by up to 4 pixels, zeros around (`crop`), and half of them mirrored (`crop_flip`)."""
    return x if kind == "none" else moved(x, _PADDING, mirror=kind == "crop_flip")


def augment_images(x: Tensor, settings: AugmentSettings) -> Tensor:
    """Return images (n, c, h, w), changed as the settings say."""
    if settings.crop or settings.flip:
        x = moved(x, settings.crop, mirror=settings.flip)
    return erased(x, settings.erase, settings.erase_share) if settings.erase else x


def moved(x: Tensor, padding: int, *, mirror: bool) -> Tensor:
    """Return images shifted by up to `padding` pixels, zeros around them; half of them mirrored if `mirror` is set."""
    count, _, height, width = x.shape
    rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
    down, across = rows[None, :, None], columns[None, None, :]
    if padding:
        x = F.pad(x, (padding,) * 4)
        top, left = (torch.randint(0, 2 * padding + 1, (count, 1, 1), device=x.device) for _ in range(2))
        down, across = top + down, left + across
    if mirror:
        across = torch.where(torch.rand(count, 1, 1, device=x.device) < 0.5, across.flip(2), across)
    each = torch.arange(count, device=x.device)[:, None, None]
    return x[each, :, down, across].movedim(3, 1).contiguous()


def erased(x: Tensor, share_of_images: float, largest: float) -> Tensor:
    """Return images, a share of them with a rectangle of zeros (Zhong et al. 2020, "Random Erasing").

    Args:
        x: images (n, c, h, w).
        share_of_images: probability that an image loses a rectangle.
        largest: the rectangle's largest share of the image; its smallest is 0.02, its sides' ratio 0.3 to 1 / 0.3.
    """
    count, _, height, width = x.shape
    chosen, area, ratio, top, left = (torch.rand(count, 1, 1, device=x.device) for _ in range(5))
    area = (_SMALLEST + (max(largest, _SMALLEST) - _SMALLEST) * area) * height * width
    ratio = torch.exp((2 * ratio - 1) * _RATIO)
    tall = torch.sqrt(area * ratio).round().clamp(1, height)
    wide = torch.sqrt(area / ratio).round().clamp(1, width)
    top, left = torch.floor(top * (height - tall + 1)), torch.floor(left * (width - wide + 1))
    rows = torch.arange(height, device=x.device)[None, :, None]
    columns = torch.arange(width, device=x.device)[None, None, :]
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    return x.masked_fill((inside & (chosen < share_of_images)).unsqueeze(1), 0.0)
