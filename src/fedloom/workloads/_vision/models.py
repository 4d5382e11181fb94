"""Networks for images: functions from the data's shape to a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads._vision.settings import ModelSettings
from fedloom.workloads._vision.vit import VisionTransformer

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""
Norm = Callable[[int], list[nn.Module]]
"""Returns the layers, none or one, that normalise a number of channels."""

_GROUPS = 8
"""Groups of group normalisation; fewer if the channels are not a multiple."""


def build_model(settings: ModelSettings, shape: Shape, num_labels: int) -> nn.Module:
    """Return the network of the settings.

    Args:
        settings: which network.
        shape: channels, height and width of an image.
        num_labels: classes.

    Returns:
        A module from images (b, c, h, w) to logits (b, num_labels), float32, initialised by torch's generator.
    """
    return _BUILDERS[settings.name](settings, shape, num_labels)


def _mlp(settings: ModelSettings, shape: Shape, num_labels: int) -> nn.Module:
    norm = _norm(settings, "none", flat=True)
    widths = [shape[0] * shape[1] * shape[2], *settings.hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), *norm(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_labels))


def _cnn(settings: ModelSettings, shape: Shape, num_labels: int) -> nn.Module:
    """Return two 5 x 5 convolutions with 16 and 32 channels, each pooled, and a dense layer of 256.

    Images smaller than 16 pixels are padded by 2 on each side, so that 8 x 8 digits are left with 2 x 2. Pooling comes
    before ReLU: both are monotonous, so the values are the same, and ReLU has a quarter of the work.
    """
    norm = _norm(settings, "none")
    channels, height, width = shape
    first, second = _scaled(settings, 16, 32)
    padding = 2 if min(height, width) < 16 else 0
    left = [(((side - 4 + 2 * padding) // 2) - 4 + 2 * padding) // 2 for side in (height, width)]
    return nn.Sequential(
        nn.Conv2d(channels, first, 5, padding=padding),
        *norm(first),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(first, second, 5, padding=padding),
        *norm(second),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * left[0] * left[1], 256),
        nn.ReLU(),
        nn.Linear(256, num_labels),
    )


def _strided(settings: ModelSettings, shape: Shape, num_labels: int) -> nn.Module:
    """Return two 3 x 3 convolutions with stride 2, 16 and 32 channels, and one dense layer."""
    norm = _norm(settings, "batch")
    channels, height, width = shape
    first, second = _scaled(settings, 16, 32)
    left = [-(-side // 4) for side in (height, width)]
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, 2, 1),
        *norm(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, 2, 1),
        *norm(second),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * left[0] * left[1], num_labels),
    )


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; if the size changes, the shortcut subsamples and pads with zeros.

    He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2, option A.
    """

    def __init__(self, before: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = _single(norm(after))
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = _single(norm(after))
        self._stride, self._pad = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, h, w) to (b, after, h / stride, w / stride)."""
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = x[:, :, :: self._stride, :: self._stride] if self._stride > 1 else x
        return F.relu(out + F.pad(shortcut, (0, 0, 0, 0, 0, self._pad)))


class _Projected(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; if the shape changes, a normalised 1 x 1 convolution.

    He et al. 2016, "Deep Residual Learning for Image Recognition", section 3.3, option B.
    """

    def __init__(self, before: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = _single(norm(after))
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = _single(norm(after))
        projection = [nn.Conv2d(before, after, 1, stride, bias=False), *norm(after)]
        self.shortcut = nn.Sequential(*projection if stride > 1 or before != after else [])

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, h, w) to (b, after, h / stride, w / stride)."""
        added: Tensor = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.shortcut(x)
        return F.relu(added)


class _PreActivated(nn.Module):
    """Normalisation and ReLU before each of two 3 x 3 convolutions; a 1 x 1 convolution if the shape changes.

    He et al. 2016, "Identity Mappings in Deep Residual Networks", figure 1 (b).
    """

    def __init__(self, before: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = _single(norm(before))
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm2 = _single(norm(after))
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        changes = stride > 1 or before != after
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, h, w) to (b, after, h / stride, w / stride)."""
        active = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        added: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active)))) + shortcut
        return added


def _resnet(depth: int) -> Callable[[ModelSettings, Shape, int], nn.Module]:
    """ResNet with 6n + 2 layers: three stages of n blocks with 16, 32 and 64 channels."""

    def build(settings: ModelSettings, shape: Shape, num_labels: int) -> nn.Module:
        norm = _norm(settings, "group")
        widths = _scaled(settings, 16, 32, 64)
        before = widths[0]
        layers: list[nn.Module] = [nn.Conv2d(shape[0], before, 3, 1, 1, bias=False), *norm(before), nn.ReLU()]
        for width in widths:
            for _ in range((depth - 2) // 6):
                layers.append(_Block(before, width, 2 if width > before else 1, norm))
                before = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_labels))

    return build


def _projecting(widths: Sequence[int], blocks: int) -> Callable[[ModelSettings, Shape, int], nn.Module]:
    """Stages of blocks with projections after a 3 x 3 convolution; every stage but the first halves the sides."""

    def build(settings: ModelSettings, shape: Shape, num_labels: int) -> nn.Module:
        norm = _norm(settings, "batch")
        stages = _scaled(settings, *widths)
        before = stages[0]
        layers: list[nn.Module] = [nn.Conv2d(shape[0], before, 3, 1, 1, bias=False), *norm(before), nn.ReLU()]
        for stage, width in enumerate(stages):
            for block in range(blocks):
                layers.append(_Projected(before, width, 2 if stage and not block else 1, norm))
                before = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_labels))

    return build


def _preact(stem: int, widths: Sequence[int], blocks: int) -> Callable[[ModelSettings, Shape, int], nn.Module]:
    """Stages of pre-activated blocks; every stage but the first halves the sides."""

    def build(settings: ModelSettings, shape: Shape, num_labels: int) -> nn.Module:
        norm = _norm(settings, "batch")
        before, *stages = _scaled(settings, stem, *widths)
        layers: list[nn.Module] = [nn.Conv2d(shape[0], before, 3, 1, 1, bias=False)]
        for stage, width in enumerate(stages):
            for block in range(blocks):
                layers.append(_PreActivated(before, width, 2 if stage and not block else 1, norm))
                before = width
        head = [*norm(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_labels)]
        return nn.Sequential(*layers, *head)

    return build


def _vit(settings: ModelSettings, shape: Shape, num_labels: int) -> nn.Module:
    return VisionTransformer(settings.vit, shape, num_labels)


def _scaled(settings: ModelSettings, *widths: int) -> list[int]:
    return [max(1, round(width * settings.width)) for width in widths]


def _norm(settings: ModelSettings, usual: str, *, flat: bool = False) -> Norm:
    kind = usual if settings.norm == "auto" else settings.norm
    return {"none": _no_norm, "group": _group_norm, "batch": _flat_batch_norm if flat else _batch_norm}[kind]


def _no_norm(width: int) -> list[nn.Module]:
    return []


def _batch_norm(width: int) -> list[nn.Module]:
    return [_uncounted(nn.BatchNorm2d(width))]


def _flat_batch_norm(width: int) -> list[nn.Module]:
    return [_uncounted(nn.BatchNorm1d(width))]


def _uncounted(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    """Batch normalisation without its counter of batches, which no computation reads and no mean makes sense of."""
    layer.num_batches_tracked = None
    return layer


def _group_norm(width: int) -> list[nn.Module]:
    return [nn.GroupNorm(math.gcd(_GROUPS, width), width)]


def _single(layers: list[nn.Module]) -> nn.Module:
    return layers[0] if layers else nn.Identity()


_BUILDERS: dict[str, Callable[[ModelSettings, Shape, int], nn.Module]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "strided": _strided,
    "resnet8": _resnet(8),
    "resnet20": _resnet(20),
    "resnet18": _projecting((64, 128, 256, 512), 2),
    "preact_resnet8": _preact(16, (16, 32, 64), 1),
    "preact_resnet18": _preact(64, (64, 128, 256, 512), 2),
    "wrn16_2": _preact(16, (32, 64, 128), 2),
    "wrn34_10": _preact(16, (160, 320, 640), 5),
    "vit": _vit,
}
