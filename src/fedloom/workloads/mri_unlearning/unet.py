"""The U-Net of fastMRI's baselines, and its form for complex images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SLOPE = 0.2


def _block(given: int, made: int) -> nn.Sequential:
    """Return (3x3 convolution, instance normalisation, leaky ReLU) twice."""
    layers: list[nn.Module] = []
    for width in (given, made):
        layers += [nn.Conv2d(width, made, 3, padding=1, bias=False), nn.InstanceNorm2d(made), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers)


def _rise(given: int, made: int) -> nn.Sequential:
    """Return the 2x2 transposed convolution of a step up."""
    up = nn.ConvTranspose2d(given, made, 2, stride=2, bias=False)
    return nn.Sequential(up, nn.InstanceNorm2d(made), nn.LeakyReLU(_SLOPE))


class UNet(nn.Module):
    """Average pooling down, transposed convolutions up, skip connections, a 1x1 convolution at the end.

    Args:
        given: input channels.
        made: output channels.
        channels: of the first level; they double at each level below.
        pools: levels below the first.
    """

    def __init__(self, given: int, made: int, channels: int, pools: int) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(pools + 1)]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip([given, *widths], widths, strict=False))
        self.rise = nn.ModuleList(_rise(2 * width, width) for width in reversed(widths[:-1]))
        self.up = nn.ModuleList(_block(2 * width, width) for width in reversed(widths[:-1]))
        self.last = nn.Conv2d(channels, made, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, made, h, w) of (b, given, h, w); h and w are multiples of 2^pools."""
        kept = []
        for number, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if number else x)
            kept.append(x)
        for skip, rise, block in zip(reversed(kept[:-1]), self.rise, self.up, strict=True):
            x = block(torch.cat([rise(x), skip], 1))
        found: Tensor = self.last(x)
        return found


def padded(x: Tensor, multiple: int) -> tuple[Tensor, tuple[slice, slice]]:
    """Return images filled up with zeros to a multiple of pixels on both sides, and the place of the originals."""
    pads, places = [], []
    for length in x.shape[-2:]:
        more = -length % multiple
        pads.append((more // 2, more - more // 2))
        places.append(slice(more // 2, more // 2 + length))
    return F.pad(x, (*pads[1], *pads[0])), (places[0], places[1])


class ComplexUNet(nn.Module):
    """A U-Net on real and imaginary parts, each normalised to mean 0 and standard deviation 1 per image.

    Args:
        channels: of the first level.
        pools: levels below the first.
    """

    def __init__(self, channels: int, pools: int) -> None:
        super().__init__()
        self.unet = UNet(2, 2, channels, pools)
        self._multiple = max(16, 2**pools)

    def forward(self, image: Tensor) -> Tensor:
        """Return a complex image (b, h, w) of one."""
        x = torch.view_as_real(image).movedim(-1, 1)
        mean = x.mean((2, 3), keepdim=True)
        spread = (x - mean).square().mean((2, 3), keepdim=True).sqrt().clamp_min(1e-9)
        filled, (rows, columns) = padded((x - mean) / spread, self._multiple)
        found = self.unet(filled)[..., rows, columns] * spread + mean
        return torch.view_as_complex(found.movedim(1, -1).contiguous())
