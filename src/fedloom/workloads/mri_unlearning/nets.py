"""Reconstruction networks: the end-to-end variational network, and a U-Net of the zero-filled image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedloom.workloads.mri_unlearning.config import NetSettings
from fedloom.workloads.mri_unlearning.operators import combine, expand, fft2c, ifft2c, rss
from fedloom.workloads.mri_unlearning.unet import ComplexUNet, UNet, padded


class Sensitivities(nn.Module):
    """Coil sensitivities from the fully sampled centre of k-space; their root-sum-of-squares is 1.

    Args:
        channels: of the first level of the U-Net, which sees one coil at a time.
        pools: its levels below the first.
    """

    def __init__(self, channels: int, pools: int) -> None:
        super().__init__()
        self.net = ComplexUNet(channels, pools)

    def forward(self, kspace: Tensor, centre: Tensor) -> Tensor:
        """Return (b, c, h, w) complex of k-space (b, c, h, w) and the centre's columns (w,), bool."""
        images = ifft2c(kspace * centre)
        found: Tensor = self.net(images.flatten(0, 1)).reshape(images.shape)
        return found / rss(found).clamp_min(1e-9).unsqueeze(1)


class Cascade(nn.Module):
    """One step: k <- k - eta M (k - k~) - F(S U(sum_c conj(S_c) F^-1 k_c)); eta is learned and starts at 1.

    Args:
        channels: of the first level of the U-Net.
        pools: its levels below the first.
    """

    def __init__(self, channels: int, pools: int) -> None:
        super().__init__()
        self.net = ComplexUNet(channels, pools)
        self.eta = nn.Parameter(torch.ones(1))

    def forward(self, kspace: Tensor, measured: Tensor, mask: Tensor, maps: Tensor) -> Tensor:
        """Return the next k-space, (b, c, h, w)."""
        consistency = (kspace - measured) * mask * self.eta
        return kspace - consistency - fft2c(expand(self.net(combine(ifft2c(kspace), maps)), maps))


class VarNet(nn.Module):
    """The end-to-end variational network (Sriram et al. 2020).

    Args:
        settings: cascades and widths.
    """

    def __init__(self, settings: NetSettings) -> None:
        super().__init__()
        self.sensitivities = Sensitivities(settings.sensitivity_channels, settings.sensitivity_pools)
        self.cascades = nn.ModuleList(Cascade(settings.channels, settings.pools) for _ in range(settings.cascades))

    def forward(self, measured: Tensor, mask: Tensor, centre: Tensor) -> Tensor:
        """Return the image (b, h, w) of measured k-space (b, c, h, w); sampled columns and the centre's, (w,), bool."""
        return rss(ifft2c(self.kspace(measured, mask, centre)))

    def kspace(self, measured: Tensor, mask: Tensor, centre: Tensor) -> Tensor:
        """Return the k-space after the last cascade, (b, c, h, w)."""
        maps, found = self.sensitivities(measured, centre), measured
        for cascade in self.cascades:
            found = cascade(found, measured, mask, maps)
        return found


class ImageUNet(nn.Module):
    """A U-Net of the zero-filled root-sum-of-squares image, normalised per image.

    Args:
        settings: widths.
    """

    def __init__(self, settings: NetSettings) -> None:
        super().__init__()
        self.unet = UNet(1, 1, settings.channels, settings.pools)
        self._multiple = 2**settings.pools

    def forward(self, measured: Tensor, mask: Tensor, centre: Tensor) -> Tensor:
        """Return the image, see `VarNet.forward`."""
        image = rss(ifft2c(measured)).unsqueeze(1)
        mean = image.mean((2, 3), keepdim=True)
        spread = (image - mean).square().mean((2, 3), keepdim=True).sqrt().clamp_min(1e-9)
        filled, (rows, columns) = padded((image - mean) / spread, self._multiple)
        found: Tensor = self.unet(filled)[..., rows, columns] * spread + mean
        return found.squeeze(1)


def make_net(settings: NetSettings) -> nn.Module:
    """Return a network with new weights from torch's global generator."""
    return VarNet(settings) if settings.kind == "varnet" else ImageUNet(settings)


def cropped(image: Tensor, like: Tensor) -> Tensor:
    """Return the centre of images (b, h, w) in the size of others (b, h', w')."""
    places = []
    for whole, part in zip(image.shape[-2:], like.shape[-2:], strict=True):
        start = (whole - part) // 2
        places.append(slice(start, start + part))
    return image[..., places[0], places[1]]
