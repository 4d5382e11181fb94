"""Adversarial models: a generator G(z) and a critic D(x) that take turns; no density."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.core.errors import ConfigError
from fedloom.workloads.generative.member import Batch, Form, Member


class Generator(nn.Module):
    """DCGAN's generator, small: a linear layer, two doublings, tanh (Radford et al. 2016); no normalisation by batches.

    Args:
        form: the images; sides are multiples of 4.
        latent: entries of z.
        channels: channels before the last layer.

    Raises:
        ConfigError: a side is no multiple of 4.
    """

    def __init__(self, form: Form, latent: int, channels: int) -> None:
        super().__init__()
        if form.height % 4 or form.width % 4:
            raise ConfigError(
                f"workload.members: GANs need images whose sides are multiples of 4, got {form.height} x {form.width}; "
                "set workload.size to a multiple of 4, or remove 'gan', 'wgan_gp' and 'hinge'"
            )
        self.latent = latent
        self._seed_shape = (2 * channels, form.height // 4, form.width // 4)
        self.first = nn.Linear(latent, 2 * channels * (form.height // 4) * (form.width // 4))
        self.body = nn.Sequential(
            nn.GroupNorm(4, 2 * channels),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            nn.GroupNorm(4, channels),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, 1, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return images from -1 to 1, (b, 1, h, w)."""
        out: Tensor = self.body(self.first(z).reshape(len(z), *self._seed_shape))
        return out


def critic(form: Form, channels: int) -> nn.Sequential:
    """Return a critic without normalisation: images (b, 1, h, w) to (b, 1)."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * channels, 2 * channels, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * channels * (form.height // 4) * (form.width // 4), 1),
    )


class AdversarialModel(Member):
    """A generator and a critic: after every `critic_steps` steps of the critic, one of the generator.

    Real images are dequantised, so that the critic cannot tell them by their whole levels.

    Args:
        form: the images.
        latent: entries of z.
        channels: channels of the networks.
        critic_steps: steps of the critic for one of the generator.
    """

    betas = (0.5, 0.9)

    def __init__(self, form: Form, latent: int, channels: int, critic_steps: int) -> None:
        super().__init__(form)
        self._critic_steps = critic_steps
        self.generator = Generator(form, latent, channels)
        self.critic = critic(form, channels)
        self._critics_turn = True

    @abstractmethod
    def critic_loss(self, real: Tensor, fake: Tensor, batch: Batch) -> Tensor:
        """Return the critic's loss on images from -1 to 1, (b, 1, h, w) each."""

    @abstractmethod
    def generator_loss(self, scores: Tensor) -> Tensor:
        """Return the generator's loss for the critic's scores of its images, (b, 1)."""

    def players(self) -> Mapping[str, nn.Module]:
        return {"generator": self.generator, "critic": self.critic}

    def turn(self, step: int) -> str:
        self._critics_turn = step % (self._critic_steps + 1) < self._critic_steps
        return "critic" if self._critics_turn else "generator"

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of whose turn it is."""
        z = batch.noise.normal(self.generator.latent)
        if not self._critics_turn:
            return self.generator_loss(self.critic(self.generator(z)))
        with torch.no_grad():
            fake = self.generator(z)
        real = (2.0 * self.form.dequantised(batch.x, batch.noise) - 1.0).reshape(fake.shape)
        return self.critic_loss(real, fake, batch)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(count, self.generator.latent, generator=generator, device=generator.device)
        return self.form.quantised(0.5 * (self.generator(z).flatten(1) + 1.0))


class NonSaturating(AdversarialModel):
    """The non-saturating game (Goodfellow et al. 2014): D: E ln(1+e^-D(x)) + E ln(1+e^D(G)); G: E ln(1+e^-D(G))."""

    def critic_loss(self, real: Tensor, fake: Tensor, batch: Batch) -> Tensor:
        return F.softplus(-self.critic(real)).mean() + F.softplus(self.critic(fake)).mean()

    def generator_loss(self, scores: Tensor) -> Tensor:
        return F.softplus(-scores).mean()


class WassersteinGp(AdversarialModel):
    """WGAN-GP (Gulrajani et al. 2017): D: E D(G) - E D(x) + 10 E (|grad D| - 1)^2 between x and G; G: -E D(G)."""

    _PENALTY = 10.0

    def critic_loss(self, real: Tensor, fake: Tensor, batch: Batch) -> Tensor:
        share = batch.noise.uniform(1, 1, 1)
        between = (share * real + (1.0 - share) * fake).detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        norm = (slope.flatten(1).square().sum(1) + 1e-12).sqrt()
        distance = self.critic(fake).mean() - self.critic(real).mean()
        loss: Tensor = distance + self._PENALTY * (norm - 1.0).square().mean()
        return loss

    def generator_loss(self, scores: Tensor) -> Tensor:
        return -scores.mean()


class HingeSpectral(AdversarialModel):
    """The hinge game with spectral norm (Miyato et al. 2018): D: E max(0, 1-D(x)) + E max(0, 1+D(G)); G: -E D(G)."""

    def __init__(self, form: Form, latent: int, channels: int, critic_steps: int) -> None:
        super().__init__(form, latent, channels, critic_steps)
        layers = [SpectralNorm(each) if isinstance(each, nn.Conv2d | nn.Linear) else each for each in self.critic]
        self.critic = nn.Sequential(*layers)

    def critic_loss(self, real: Tensor, fake: Tensor, batch: Batch) -> Tensor:
        return F.relu(1.0 - self.critic(real)).mean() + F.relu(1.0 + self.critic(fake)).mean()

    def generator_loss(self, scores: Tensor) -> Tensor:
        return -scores.mean()


class SpectralNorm(nn.Module):
    """A layer whose weight is divided by its largest singular value sigma = u'Wv.

    In training each pass takes one step of the power iteration: v <- W'u, u <- W v, both normalised.

    Args:
        layer: a linear layer or a convolution, whose weight is seen as a matrix (outputs, all others).
    """

    u: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("u", F.normalize(torch.randn(layer.weight.shape[0]), dim=0))

    def sigma(self) -> Tensor:
        """Return the current estimate of the largest singular value, differentiable in the weight."""
        matrix = self.layer.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(matrix.T @ self.u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
            if self.training:
                self.u.copy_(u)
        return u.clone() @ matrix @ v

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output with the weight over sigma."""
        weight = self.layer.weight / self.sigma()
        if isinstance(self.layer, nn.Conv2d):
            return F.conv2d(x, weight, self.layer.bias, self.layer.stride, self.layer.padding)
        return F.linear(x, weight, self.layer.bias)
