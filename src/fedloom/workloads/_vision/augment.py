"""Images moved and mirrored at random, for training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_PADDING = 4


def augmented(x: Tensor, kind: str) -> Tensor:
    """Images shifted by up to 4 pixels, with zeros around (`crop`), and half of them mirrored, too (`crop_flip`)."""
    if kind == "none":
        return x
    count, _, height, width = x.shape
    padded = F.pad(x, (_PADDING,) * 4)
    down, right = (torch.randint(0, 2 * _PADDING + 1, (count, 1, 1), device=x.device) for _ in range(2))
    rows = down + torch.arange(height, device=x.device)[None, :, None]
    columns = right + torch.arange(width, device=x.device)[None, None, :]
    if kind == "crop_flip":
        mirrored = torch.rand(count, 1, 1, device=x.device) < 0.5
        columns = torch.where(mirrored, columns.flip(2), columns)
    each = torch.arange(count, device=x.device)[:, None, None]
    return padded[each, :, rows, columns].movedim(3, 1).contiguous()
