"""Variational autoencoders: ln p(x) >= E_q[ln p(x | z) + ln p(z) - ln q(z | x)]; IWAE's bound; VQ-VAE."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads.generative.autoregressive import Made
from fedloom.workloads.generative.flow import normal_log_prob
from fedloom.workloads.generative.member import Batch, Form, Member
from fedloom.workloads.generative.nets import mlp
from fedloom.workloads.generative.noise import Noise


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(m, s^2) || N(0, I)) = -1/2 sum(1 + ln s^2 - m^2 - s^2), (b,)."""
    return -0.5 * (1.0 + log_var - mean.square() - log_var.exp()).sum(1)


class Vae(Member):
    """A VAE (Kingma and Welling 2014) whose decoder gives a distribution over each pixel's levels.

    With `samples` k > 1 it is IWAE (Burda et al. 2016): it maximises
    L_k = E ln 1/k sum_j p(x | z_j) p(z_j) / q(z_j | x), and L_1 <= L_k <= L_{k+1} <= ln p(x).

    Args:
        form: the images.
        latent: entries of z.
        hidden: units of each hidden layer.
        samples: k in training; 1 uses the closed form of the KL divergence.
        bound_samples: k of the bound that is reported.
    """

    def __init__(self, form: Form, latent: int, hidden: Sequence[int], samples: int, bound_samples: int) -> None:
        super().__init__(form)
        self._latent, self._samples, self._bound_samples = latent, samples, bound_samples
        self.encoder = mlp(form.dims, hidden, 2 * latent)
        self.decoder = mlp(latent, hidden[::-1], form.dims * form.levels)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and ln s^2 of q(z | x), (b, latent) each."""
        mean, log_var = self.encoder(self.form.scaled(x.flatten(1))).chunk(2, 1)
        return mean, log_var.clamp(-12.0, 6.0)

    def likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return ln p(x | z), (b,)."""
        logits = self.decoder(z).reshape(len(z), self.form.dims, self.form.levels)
        return -F.cross_entropy(logits.movedim(2, 1), x.flatten(1), reduction="none").sum(1)

    def elbo(self, x: Tensor, noise: Noise) -> Tensor:
        """Return ln p(x | z) - KL(q || p) at one z, (b,)."""
        mean, log_var = self.posterior(x)
        z = mean + (0.5 * log_var).exp() * noise.normal(self._latent)
        return self.likelihood(x, z) - gaussian_kl(mean, log_var)

    def bound(self, x: Tensor, noise: Noise, samples: int) -> Tensor:
        """Return ln 1/k sum_j of the importance weights of k samples, a lower bound on ln p(x) on average, (b,)."""
        mean, log_var = self.posterior(x)
        weights = []
        for _ in range(samples):
            e = noise.normal(self._latent)
            z = mean + (0.5 * log_var).exp() * e
            log_q = normal_log_prob(e) - 0.5 * log_var.sum(1)
            weights.append(self.likelihood(x, z) + normal_log_prob(z) - log_q)
        return torch.stack(weights).logsumexp(0) - math.log(samples)

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        return self.bound(x, noise, self._bound_samples)

    def loss(self, batch: Batch) -> Tensor:
        """Return minus the mean bound over D."""
        if self._samples == 1:
            return -self.elbo(batch.x, batch.noise).mean() / self.form.dims
        return -self.bound(batch.x, batch.noise, self._samples).mean() / self.form.dims

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(count, self._latent, generator=generator, device=generator.device)
        return drawn(self.decoder(z).reshape(count, self.form.dims, self.form.levels), self.form, generator)


class VqVae(Member):
    """VQ-VAE (van den Oord et al. 2017): codes k_j = argmin |z_j - c_k|, gradients passed straight through.

    Loss: -ln p(x | c) + sum |sg(z) - c|^2 + beta |z - sg(c)|^2 - ln p(k), each over D; the prior p(k) is a MADE over
    the codes, learned beside the rest. -ln p(k) - ln p(x | c_k) is an upper bound on -ln p(x), the sum over all codes.

    Args:
        form: the images.
        codes: codes of an image.
        book: entries of the codebook.
        width: numbers of an entry.
        hidden: units of each hidden layer.
    """

    _COMMITMENT = 0.25

    def __init__(self, form: Form, codes: int, book: int, width: int, hidden: Sequence[int]) -> None:
        super().__init__(form)
        self._codes, self._width = codes, width
        self.encoder = mlp(form.dims, hidden, codes * width)
        self.decoder = mlp(codes * width, hidden[::-1], form.dims * form.levels)
        self.book = nn.Parameter(torch.randn(book, width))
        self.prior = Made(Form(1, codes, book), [4 * codes * width], width)

    def encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors z (b, codes, width) and the numbers of their nearest entries k (b, codes), int64."""
        z = self.encoder(self.form.scaled(x.flatten(1))).reshape(len(x), self._codes, self._width)
        distances = z.square().sum(2, keepdim=True) - 2.0 * z @ self.book.T + self.book.square().sum(1)
        return z, distances.argmin(2)

    def logits(self, entries: Tensor) -> Tensor:
        """Return the logits of the levels of all pixels for entries (b, codes, width), (b, D, M)."""
        out: Tensor = self.decoder(entries.flatten(1))
        return out.reshape(len(entries), self.form.dims, self.form.levels)

    def loss(self, batch: Batch) -> Tensor:
        z, numbers = self.encoded(batch.x)
        entries = self.book[numbers]
        passed = z + (entries - z).detach()
        reconstruction = F.cross_entropy(self.logits(passed).movedim(2, 1), batch.x.flatten(1))
        codebook = (z.detach() - entries).square() + self._COMMITMENT * (z - entries.detach()).square()
        prior = -self.prior.log_prob(_as_image(numbers), batch.noise).mean() / self.form.dims
        return reconstruction + codebook.sum((1, 2)).mean() / self.form.dims + prior

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """Return ln p(k) + ln p(x | c_k), a lower bound, (b,)."""
        _, numbers = self.encoded(x)
        logits = self.logits(self.book[numbers])
        decoded = -F.cross_entropy(logits.movedim(2, 1), x.flatten(1), reduction="none").sum(1)
        return self.prior.log_prob(_as_image(numbers), noise) + decoded

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        numbers = self.prior.sample(count, generator).reshape(count, self._codes)
        return drawn(self.logits(self.book[numbers]), self.form, generator)


def drawn(logits: Tensor, form: Form, generator: torch.Generator) -> Tensor:
    """Draw every pixel's level from its logits (b, D, M); images (b, 1, h, w), int64."""
    shares = logits.flatten(0, 1).softmax(1)
    return torch.multinomial(shares, 1, generator=generator).reshape(len(logits), 1, form.height, form.width)


def _as_image(numbers: Tensor) -> Tensor:
    return numbers.reshape(len(numbers), 1, 1, -1)
