"""Windowed self-attention (Liu et al. 2021) on features in channels-first form, of any height and width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SwinBlock(nn.Module):
    """Layer norm, attention in windows, layer norm, MLP, both with residuals.

    Args:
        channels: C.
        head: width of an attention head; it divides C.
        window: side of a window.
        shifted: whether windows are shifted by half a side.
        ratio: hidden width of the MLP, in C.
    """

    def __init__(self, channels: int, head: int, window: int, *, shifted: bool, ratio: int = 4) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.norm, self.attention = nn.LayerNorm(channels), WindowAttention(channels, head, window)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, ratio * channels),
            nn.GELU(),
            nn.Linear(ratio * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform features (b, C, h, w)."""
        tokens = x.permute(0, 2, 3, 1)
        tokens = tokens + self._attended(self.norm(tokens))
        out: Tensor = (tokens + self.mlp(tokens)).permute(0, 3, 1, 2).contiguous()
        return out

    def _attended(self, tokens: Tensor) -> Tensor:
        """Attend within windows; the grid is filled up to whole windows, and nothing attends across a border."""
        b, h, w, c = tokens.shape
        s, shift = self.window, self.shift
        padded = F.pad(tokens, (0, 0, 0, -w % s, 0, -h % s))
        region = _regions(h, w, padded.shape[1], padded.shape[2], s, shift, tokens.device)
        if shift:
            padded, region = padded.roll((-shift, -shift), (1, 2)), region.roll((-shift, -shift), (1, 2))
        cut, kinds = _windows(padded, s), _windows(region, s).squeeze(-1)
        apart = kinds[:, :, None] != kinds[:, None, :]
        joined = self.attention(cut, apart.repeat(b, 1, 1))
        rows, columns = padded.shape[1] // s, padded.shape[2] // s
        whole: Tensor = joined.reshape(b, rows, columns, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(padded.shape)
        back = whole.roll((shift, shift), (1, 2)) if shift else whole
        return back[:, :h, :w]


class WindowAttention(nn.Module):
    """Multi-head attention among the places of a window, with a learned bias for each offset."""

    def __init__(self, channels: int, head: int, window: int) -> None:
        super().__init__()
        self.heads = channels // head
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, self.heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offset = place[:, :, None] - place[:, None, :] + window - 1
        self.register_buffer("offset", offset[0] * (2 * window - 1) + offset[1], persistent=False)

    def forward(self, tokens: Tensor, apart: Tensor) -> Tensor:
        """Attend within windows.

        Args:
            tokens: (windows, places, C).
            apart: pairs that must not see each other, (windows, places, places), bool.
        """
        n, places, channels = tokens.shape
        q, k, v = self.qkv(tokens).reshape(n, places, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        offset = self.get_buffer("offset")
        scores = q @ k.transpose(-2, -1) * (channels // self.heads) ** -0.5 + self.bias[offset].permute(2, 0, 1)
        weights = scores.masked_fill(apart[:, None], -1e4).softmax(-1)
        found: Tensor = self.project((weights @ v).transpose(1, 2).reshape(n, places, channels))
        return found


def _windows(grid: Tensor, side: int) -> Tensor:
    """Cut (b, H, W, C) into (b windows, side^2, C)."""
    b, h, w, c = grid.shape
    cut = grid.reshape(b, h // side, side, w // side, side, c).permute(0, 1, 3, 2, 4, 5)
    return cut.reshape(-1, side**2, c)


def _regions(h: int, w: int, height: int, width: int, side: int, shift: int, device: torch.device) -> Tensor:
    """Number the parts of a filled grid that may see each other, (1, height, width, 1)."""
    grid = torch.zeros(height, width, dtype=torch.int64, device=device)
    if shift:
        rows = (torch.arange(height, device=device) < shift).long()
        columns = (torch.arange(width, device=device) < shift).long()
        grid = grid + 2 * rows[:, None] + columns[None, :]
    grid[h:] = 4
    grid[:, w:] = 4
    return grid[None, :, :, None]
