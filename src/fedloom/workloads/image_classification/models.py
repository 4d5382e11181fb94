"""The networks of image classification: functions from the data's shape to a module."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads.image_classification.config import ModelSettings

_GROUPS = 8
"""Groups of group normalisation: every width of the ResNets is a multiple."""


def build_model(settings: ModelSettings, shape: tuple[int, int, int], num_labels: int) -> nn.Module:
    """The network the settings name.

    Args:
        settings: which network.
        shape: channels, height and width of an image.
        num_labels: classes.

    Returns:
        A module from images (b, c, h, w) to logits (b, num_labels), float32, initialised by torch's generator.
    """
    return _BUILDERS[settings.name](settings, shape, num_labels)


def _mlp(settings: ModelSettings, shape: tuple[int, int, int], num_labels: int) -> nn.Module:
    widths = [shape[0] * shape[1] * shape[2], *settings.hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_labels))


def _cnn(settings: ModelSettings, shape: tuple[int, int, int], num_labels: int) -> nn.Module:
    """Two 5 x 5 convolutions with 16 and 32 channels, each pooled, and a dense layer of 256.

    Images smaller than 16 pixels are padded by 2 on each side, so that 8 x 8 digits are left with 2 x 2. Pooling comes
    before ReLU: both are monotonous, so the values are the same, and ReLU has a quarter of the work.
    """
    channels, height, width = shape
    padding = 2 if min(height, width) < 16 else 0
    left = [(((side - 4 + 2 * padding) // 2) - 4 + 2 * padding) // 2 for side in (height, width)]
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, padding=padding),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, padding=padding),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * left[0] * left[1], 256),
        nn.ReLU(),
        nn.Linear(256, num_labels),
    )


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; where the size changes, the shortcut subsamples and pads with zeros.

    He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2, option A.
    """

    def __init__(self, before: int, after: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = norm(after)
        self._stride, self._pad = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, h, w) to (b, after, h / stride, w / stride)."""
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = x[:, :, :: self._stride, :: self._stride] if self._stride > 1 else x
        return F.relu(out + F.pad(shortcut, (0, 0, 0, 0, 0, self._pad)))


def _resnet(depth: int) -> Callable[[ModelSettings, tuple[int, int, int], int], nn.Module]:
    """ResNet with 6n + 2 layers: three stages of n blocks with 16, 32 and 64 channels."""

    def build(settings: ModelSettings, shape: tuple[int, int, int], num_labels: int) -> nn.Module:
        norm = _batch_norm if settings.norm == "batch" else _group_norm
        layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False), norm(16), nn.ReLU()]
        before = 16
        for width in (16, 32, 64):
            for _ in range((depth - 2) // 6):
                layers.append(_Block(before, width, 2 if width > before else 1, norm))
                before = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_labels))

    return build


def _batch_norm(width: int) -> nn.Module:
    """Batch normalisation without its counter of batches, which no computation reads and no mean makes sense of."""
    layer = nn.BatchNorm2d(width)
    layer.num_batches_tracked = None
    return layer


def _group_norm(width: int) -> nn.Module:
    return nn.GroupNorm(_GROUPS, width)


_BUILDERS: dict[str, Callable[[ModelSettings, tuple[int, int, int], int], nn.Module]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "resnet8": _resnet(8),
    "resnet20": _resnet(20),
}
