"""Pictures of boxes merged front to back, and the derivative in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Layer = tuple[Tensor, Tensor]
"""What a box draws before black: colour (height, width, 3) and alpha (height, width)."""


def merge(layers: Sequence[Layer], background: Tensor) -> Tensor:
    """Return the picture (height, width, 3) of layers in their order, nearest first, before a colour (3,)."""
    through = torch.ones_like(layers[0][1])
    picture = torch.zeros_like(layers[0][0])
    for color, alpha in layers:
        picture = picture + through[..., None] * color
        through = through * (1 - alpha)
    return picture + through[..., None] * background


def merge_backward(layers: Sequence[Layer], background: Tensor, slope: Tensor) -> list[Layer]:
    """Return each layer's derivatives of a loss with respect to its colour and its alpha.

    Args:
        layers: as for `merge`.
        background: likewise.
        slope: (height, width, 3), the loss's derivative with respect to the merged picture.
    """
    transmittances = [torch.ones_like(layers[0][1])]
    for _, alpha in layers:
        transmittances.append(transmittances[-1] * (1 - alpha))
    behind = background.expand_as(slope)
    found = list[Layer]()
    for (color, alpha), through in zip(reversed(layers), reversed(transmittances[:-1]), strict=True):
        found.append((through[..., None] * slope, -through * (behind * slope).sum(-1)))
        behind = color + (1 - alpha)[..., None] * behind
    return found[::-1]
