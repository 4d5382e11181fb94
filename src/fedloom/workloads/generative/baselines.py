"""What every trained model has to beat: independent pixels, and one Gaussian. Both are sums over images, so exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedloom.workloads.generative.member import Batch, Form, Member
from fedloom.workloads.generative.noise import Noise

_SMOOTHING = 1e-3
"""Added to every frequency of a level, so that a level never seen has a finite code."""


class Histogram(Member):
    """Independent pixels: p(x) = prod_i f_i(x_i), f_i the frequencies of the training images, smoothed.

    With weights by examples, the mean of clients' frequencies is the frequency in the pooled images exactly.
    """

    frequencies: Tensor

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self.register_buffer("frequencies", torch.full((form.dims, form.levels), 1.0 / form.levels))

    def observe(self, x: Tensor) -> None:
        flat = x.flatten(1)
        counts = torch.stack([(flat == level).sum(0) for level in range(self.form.levels)], 1)
        self.frequencies.copy_(counts.double() / len(flat))

    def loss(self, batch: Batch) -> Tensor:
        """Return 0: nothing is learned by steps."""
        return torch.zeros((), device=batch.x.device)

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """Return ln p(x), exact, (b,)."""
        return self._logs().expand(len(x), -1, -1).gather(2, x.flatten(1)[..., None]).sum((1, 2)).float()

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        drawn = torch.multinomial(self._logs().exp(), count, replacement=True, generator=generator)
        return drawn.T.reshape(count, 1, self.form.height, self.form.width)

    def _logs(self) -> Tensor:
        smoothed = self.frequencies.double() + _SMOOTHING
        return (smoothed / smoothed.sum(1, keepdim=True)).log()


class Gaussian(Member):
    """A Gaussian of full covariance on dequantised images y = (x + u) / M.

    Mean and second moment are those of y, the uniform noise's share added in closed form: E u = 1/2, var u = 1/12. So
    the covariance is never singular, and pooled clients give the pooled Gaussian.
    """

    mean: Tensor
    second: Tensor

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self.register_buffer("mean", torch.full((form.dims,), 0.5))
        self.register_buffer("second", torch.full((form.dims, form.dims), 0.25) + torch.eye(form.dims) / 12.0)

    def observe(self, x: Tensor) -> None:
        y = (x.flatten(1).double() + 0.5) / self.form.levels
        ridge = torch.eye(self.form.dims, dtype=torch.float64, device=x.device) / (12.0 * self.form.levels**2)
        self.mean.copy_(y.mean(0))
        self.second.copy_(y.T @ y / len(y) + ridge)

    def loss(self, batch: Batch) -> Tensor:
        """Return 0: nothing is learned by steps."""
        return torch.zeros((), device=batch.x.device)

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """Return ln p(y) - D ln M, a lower bound on the code's probability, (b,)."""
        form = self.form
        factor = self._factor()
        centred = form.dequantised(x, noise).double() - self.mean.double()
        white = torch.linalg.solve_triangular(factor, centred.T, upper=False)
        constant = form.dims * (0.5 * math.log(2.0 * math.pi) + math.log(form.levels))
        found: Tensor = -0.5 * white.square().sum(0) - factor.diagonal().log().sum() - constant
        return found.float()

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        white = torch.randn(count, self.form.dims, generator=generator, device=generator.device).double()
        return self.form.quantised((self.mean.double() + white @ self._factor().T).float())

    def _factor(self) -> Tensor:
        """Return the Cholesky factor of the covariance; sums in float32 may need a little more on its diagonal."""
        mean = self.mean.double()
        covariance = self.second.double() - torch.outer(mean, mean)
        floor = torch.eye(len(mean), dtype=torch.float64, device=mean.device) * 1e-6
        factor: Tensor = torch.linalg.cholesky(covariance + floor)
        return factor
