"""Autoregressive models: p(x) = prod_i p(x_i | x_1 .. x_{i-1}), pixels in raster order, levels as classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads.generative.member import Batch, Form, Member
from fedloom.workloads.generative.nets import MaskedMlp
from fedloom.workloads.generative.noise import Noise


class AutoregressiveModel(Member):
    """Exact likelihood in one pass; a sample takes one pass for each pixel."""

    @abstractmethod
    def logits(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the logits of every pixel's level given the pixels before it, (b, D, M).

        Args:
            x: levels, (b, 1, h, w).
            generator: randomness of dropout in training; None drops nothing.
        """

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """Return ln p(x) = sum_i ln p(x_i | x_{<i}), exact, (b,)."""
        return -F.cross_entropy(self.logits(x).movedim(2, 1), x.flatten(1), reduction="none").sum(1)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean of -ln p(x) / D."""
        return F.cross_entropy(self.logits(batch.x, batch.generator).movedim(2, 1), batch.x.flatten(1))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        form = self.form
        x = torch.zeros(count, 1, form.height, form.width, dtype=torch.int64, device=generator.device)
        flat = x.view(count, form.dims)
        for place in range(form.dims):
            shares = self.logits(x)[:, place].softmax(1)
            flat[:, place] = torch.multinomial(shares, 1, generator=generator)[:, 0]
        return x


class Made(AutoregressiveModel):
    """MADE (Germain et al. 2015): a perceptron with masked weights.

    Args:
        form: the images, or codes in the form of images.
        hidden: units of each hidden layer.
        width: numbers that stand for a level on its way in; learned.
        dropout: share of these that is set to 0 in training.
    """

    def __init__(self, form: Form, hidden: Sequence[int], width: int = 4, dropout: float = 0.0) -> None:
        super().__init__(form)
        self._dropout = dropout
        self.levels = nn.Embedding(form.levels, width)
        self.net = MaskedMlp(form.dims, hidden, form.levels, width=width)

    def logits(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        inputs = dropped(self.levels(x.flatten(1)).flatten(1), self._dropout, generator)
        out: Tensor = self.net(inputs)
        return out


class MaskedConvolution(nn.Conv2d):
    """A convolution that sees pixels before its own in raster order; of type B also its own.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        size: side of the window, odd.
        own: whether it sees the pixel itself (type B).
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, *, own: bool) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        mask = torch.ones(size, size)
        mask[size // 2, size // 2 + int(own) :] = 0.0
        mask[size // 2 + 1 :] = 0.0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, (b, outputs, h, w)."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class PixelCnn(AutoregressiveModel):
    """PixelCNN (van den Oord et al. 2016): masked convolutions with residual blocks; plain, so with its blind spot.

    Args:
        form: the images.
        channels: channels of a layer.
        blocks: residual blocks.
    """

    def __init__(self, form: Form, channels: int, blocks: int) -> None:
        super().__init__(form)
        self.first = MaskedConvolution(2, channels, 5, own=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Conv2d(channels, channels // 2, 1),
                nn.SiLU(),
                MaskedConvolution(channels // 2, channels // 2, 3, own=True),
                nn.SiLU(),
                nn.Conv2d(channels // 2, channels, 1),
            )
            for _ in range(blocks)
        )
        self.place = nn.Parameter(torch.zeros(1, channels, form.height, form.width))
        self.last = nn.Conv2d(channels, form.levels, 1)

    def logits(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        scaled = self.form.scaled(x).to(self.place.dtype)
        h = self.first(torch.cat([scaled, torch.ones_like(scaled)], 1)) + self.place
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.last(F.silu(h))
        return out.flatten(2).movedim(1, 2)


class AttentionBlock(nn.Module):
    """Causal attention and a perceptron, each with a norm before and a shortcut.

    Args:
        width: width of a token.
        heads: heads of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, h: Tensor) -> Tensor:
        """Return the tokens' new values, (b, D, width)."""
        batch, length, width = h.shape
        q, k, v = self.qkv(self.norm(h)).reshape(batch, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        out: Tensor = h + self.mlp(h)
        return out


class CausalTransformer(AutoregressiveModel):
    """A transformer decoder over pixels (image transformer, Parmar et al. 2018; here with full causal attention).

    Args:
        form: the images.
        width: width of a token.
        layers: blocks of attention and perceptron.
        heads: heads of an attention.
    """

    def __init__(self, form: Form, width: int, layers: int, heads: int) -> None:
        super().__init__(form)
        self.levels = nn.Embedding(form.levels + 1, width)
        self.places = nn.Parameter(0.02 * torch.randn(form.dims, width))
        self.blocks = nn.ModuleList(AttentionBlock(width, heads) for _ in range(layers))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, form.levels))

    def logits(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        flat = x.flatten(1)
        start = torch.full_like(flat[:, :1], self.form.levels)
        h = self.levels(torch.cat([start, flat[:, :-1]], 1)) + self.places
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.last(h)
        return out


def dropped(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Return x with a share of its numbers set to 0 and the others scaled up; x itself without a generator."""
    if generator is None or not share:
        return x
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= share
    return x * kept / (1.0 - share)
