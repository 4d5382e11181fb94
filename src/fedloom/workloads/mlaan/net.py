"""The residual network: a stem, blocks, a classifier."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads.mlaan.config import NetSettings

_GROUPS = 8


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, a 1 x 1 convolution if the shape changes (He et al. 2016, option B)."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        self.before, self.after, self.stride = before, after, stride
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = make_norm(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = make_norm(norm, after)
        changes = stride > 1 or before != after
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if changes else nn.Identity()
        self.shortcut_norm = make_norm(norm, after) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, h, w) to (b, after, h / stride, w / stride)."""
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out + self.shortcut_norm(self.shortcut(x)))


class Classifier(nn.Module):
    """Global average pooling and a linear layer: (b, c, h, w) to (b, classes)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class Backbone(nn.Module):
    """The network in CIFAR's form: depth 6n + 2 has three stages of n blocks.

    Args:
        settings: depth, channels, normalisation.
        channels: of an image.
        classes: number of classes.
    """

    def __init__(self, settings: NetSettings, channels: int, classes: int) -> None:
        super().__init__()
        width = settings.widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, settings.stem_stride, 1, bias=False),
            make_norm(settings.norm, width),
            nn.ReLU(),
        )
        self.blocks = nn.ModuleList()
        for after in settings.widths:
            for index in range(settings.per_stage):
                self.blocks.append(Block(width, after, 2 if not index and len(self.blocks) else 1, settings.norm))
                width = after
        self.classifier = Classifier(width, classes)
        self.apply(he_initial)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images (b, c, h, w), (b, classes)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(x)
        return logits


def make_norm(kind: str, width: int) -> nn.Module:
    """Return a normalisation of this many channels: `batch` or `group`."""
    if kind == "group":
        return nn.GroupNorm(math.gcd(_GROUPS, width), width)
    layer = nn.BatchNorm2d(width)
    layer.num_batches_tracked = None  # no computation reads it, and no mean makes sense of it
    return layer


def he_initial(module: nn.Module) -> None:
    """Draw a convolution's weights from N(0, 2 / (k² out)), as the released code does."""
    if isinstance(module, nn.Conv2d):
        deviation = math.sqrt(2.0 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels))
        nn.init.normal_(module.weight, 0.0, deviation)


def untracked(module: nn.Module) -> nn.Module:
    """Make batch normalisation use the batch's statistics only: for networks that are never evaluated."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None
    return module
