"""A vision transformer small enough to be trained on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.core.errors import ConfigError
from fedloom.workloads._vision.settings import VitSettings


class Attention(nn.Module):
    """Multi-head self-attention with a projection each for queries, keys and values, so that each can be adapted."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self._heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (b, t, width) to tokens (b, t, width)."""
        split = (len(x), x.shape[1], self._heads, -1)
        query, key, value = (layer(x).view(split).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return attended


class Block(nn.Module):
    """Attention and a two-layer perceptron, each on normalised tokens and added to them."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, mlp), nn.Linear(mlp, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (b, t, width) to tokens (b, t, width)."""
        x = x + self.attention(self.norm1(x))
        added: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return added


class VisionTransformer(nn.Module):
    """Patches as tokens, pre-normalised blocks, the mean of the tokens, a linear head.

    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", with the mean over tokens instead of a class token (Beyer
    et al. 2022, "Better plain ViT baselines for ImageNet-1k") and no dropout.
    """

    def __init__(self, settings: VitSettings, shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        channels, height, width = shape
        patch = settings.patch
        if height % patch or width % patch:
            raise ConfigError(
                f"workload.model.vit.patch: images of {height} x {width} pixels cannot be cut into patches of {patch}. "
                "Set workload.resize to a multiple of it, or another patch"
            )
        self.patches = nn.Conv2d(channels, settings.width, patch, patch)
        self.position = nn.Parameter(torch.empty(1, (height // patch) * (width // patch), settings.width))
        nn.init.normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(Block(settings.width, settings.heads, settings.mlp) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(settings.width)
        self.head = nn.Linear(settings.width, num_labels)

    def forward(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) to logits (b, num_labels)."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits
