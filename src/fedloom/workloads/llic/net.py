"""A learned codec: analysis and synthesis transform, and an entropy model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads.llic.config import PAD, Config
from fedloom.workloads.llic.entropy import EntropyModel, entropy_model
from fedloom.workloads.llic.quality import ms_ssim
from fedloom.workloads.llic.quantising import Estimate, Noise
from fedloom.workloads.llic.transforms import transforms

ENTROPY = "entropy."
"""Prefix of the entropy model's arrays."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """What a codec makes of an image, with ideal code lengths."""

    image: Tensor
    """Decoded, (1, 3, H, W), from 0 to 1, not rounded."""
    bits: Tensor
    """Of each channel of the latent, (M,)."""
    hyper_bits: Tensor
    """Of the hyper-latent, ()."""

    @property
    def total(self) -> float:
        """Return the bits of the image."""
        return float((self.bits.sum() + self.hyper_bits).detach())


class Codec(nn.Module):
    """x -> y = g_a(x) -> quantised y -> x = g_s(y), with an entropy model of y.

    Args:
        config: transform, entropy model and widths.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.analysis, self.synthesis = transforms(config)
        self.entropy: EntropyModel = entropy_model(config)
        last = [each for each in self.synthesis.modules() if isinstance(each, nn.Conv2d | nn.ConvTranspose2d)][-1]
        if last.bias is not None:
            nn.init.constant_(last.bias, 0.5)  # training begins at grey images rather than at black ones

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the training loss of crops (b, 3, H, W) from 0 to 1, their bits per pixel, and their distortion D.

        loss = bits per pixel + lambda D; D is 255^2 MSE or 1 - MS-SSIM.
        """
        y = self.analysis(x.contiguous()).float()  # torch's CPU kernels write out of bounds on channels-last images
        with torch.autocast(x.device.type, enabled=False):  # probabilities need all of their bits
            z, bits = self.entropy.training_z(self.entropy.analysis(y))
            take = Noise(y)
            latent = self.entropy.run(z, take)
        decoded = self.synthesis(latent).float()
        rate = (take.bits + bits) / (x.shape[0] * x.shape[2] * x.shape[3])
        distortion = self.distortion(decoded, x)
        return rate + self.config.trade_off * distortion, rate, distortion

    def distortion(self, decoded: Tensor, x: Tensor) -> Tensor:
        """Return D of decoded images."""
        if self.config.loss == "mse":
            return 255.0**2 * F.mse_loss(decoded, x)
        return 1.0 - ms_ssim(decoded, x)

    def estimate(self, x: Tensor) -> Estimated:
        """Return what the codec makes of one image (1, 3, H, W) of any size; call it in evaluation mode."""
        height, width = x.shape[-2:]
        y = self.analysis(padded(x)).float()
        medians = self.entropy.prior.medians[:, None, None]
        with torch.autocast(x.device.type, enabled=False):
            z = torch.round(self.entropy.analysis(y) - medians) + medians
            hyper_bits, take = -torch.log2(self.entropy.prior.likelihood(z)).sum(), Estimate(y)
            latent = self.entropy.run(z, take)
        decoded = self.synthesis(latent).float()[:, :, :height, :width]
        return Estimated(decoded.clamp(0.0, 1.0), take.bits, hyper_bits)


def padded(x: Tensor) -> Tensor:
    """Fill images (b, c, H, W) up to multiples of 64 pixels with their last row and column."""
    return F.pad(x, (0, -x.shape[3] % PAD, 0, -x.shape[2] % PAD), mode="replicate")
