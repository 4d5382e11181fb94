"""Diffusion: images turn into noise step by step, a network learns the way back (DDPM, DDIM, score SDE)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fedloom.workloads.generative.continuous import integrated_with_trace, signs
from fedloom.workloads.generative.flow import normal_log_prob
from fedloom.workloads.generative.member import Batch, Form, Member
from fedloom.workloads.generative.nets import TimeNet
from fedloom.workloads.generative.noise import Noise

Schedule = Literal["cosine", "linear"]


def noise_schedule(schedule: Schedule, steps: int) -> Tensor:
    """Return b_1 .. b_T, (T,), float64.

    `linear` (Ho et al. 2020): from 0.1 / T to 20 / T. `cosine` (Nichol and Dhariwal 2021), for small images, which the
    linear one turns into noise too early: a_t = f(t) / f(0), f(t) = cos^2((t / T + 0.008) / 1.008 pi / 2), b_t at most
    0.999.
    """
    if schedule == "linear":
        return torch.linspace(0.1 / steps, min(20.0 / steps, 0.999), steps, dtype=torch.float64)
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    kept = torch.cos((times + 0.008) / 1.008 * (math.pi / 2)).square()
    return (1.0 - kept[1:] / kept[:-1]).clamp(max=0.999)


class Ddpm(Member):
    """DDPM (Ho et al. 2020): q(x_t | x_{t-1}) = N(sqrt(1 - b_t) x_{t-1}, b_t I), t from 1 to T.

    q(x_t | x_0) = N(sqrt(a_t) x_0, (1 - a_t) I), a_t = prod (1 - b_s). The network predicts the noise e in x_t, with
    the loss E |e - e(x_t, t)|^2. The bound is the sum of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), the last step
    a Gaussian cut into levels.

    Args:
        form: the images.
        hidden: units of the network.
        blocks: its residual blocks.
        steps: T.
        schedule: see `noise_schedule`.
    """

    rate = 3.0
    alphas: Tensor
    products: Tensor

    def __init__(self, form: Form, hidden: int, blocks: int, steps: int, schedule: Schedule = "cosine") -> None:
        super().__init__(form)
        self._steps = steps
        betas = noise_schedule(schedule, steps)
        self.register_buffer("alphas", (1.0 - betas).float(), persistent=False)
        self.register_buffer("products", (1.0 - betas).cumprod(0).float(), persistent=False)
        self.net = TimeNet(form.dims, hidden, blocks)

    def noised(self, x0: Tensor, t: Tensor, e: Tensor) -> Tensor:
        """Return x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, (b, D), for steps t from 0 (b,)."""
        product = self.products[t][:, None]
        return product.sqrt() * x0 + (1.0 - product).sqrt() * e

    def predicted_noise(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the noise that the network sees in x_t, (b, D)."""
        out: Tensor = self.net(x, (t + 1).float() / self._steps)
        return out

    def loss(self, batch: Batch) -> Tensor:
        x0 = self.form.scaled(batch.x.flatten(1))
        t = (batch.noise.uniform(1)[:, 0] * self._steps).long()
        e = batch.noise.normal(self.form.dims)
        return (self.predicted_noise(self.noised(x0, t, e), t) - e).square().mean()

    def posterior(self, x0: Tensor, x: Tensor, t: int) -> tuple[Tensor, float]:
        """Return the mean (b, D) and the variance of q(x_{t-1} | x_t, x_0), step t from 0."""
        a, product = float(self.alphas[t]), float(self.products[t])
        before = float(self.products[t - 1]) if t else 1.0
        mean = (math.sqrt(before) * (1.0 - a) * x0 + math.sqrt(a) * (1.0 - before) * x) / (1.0 - product)
        return mean, (1.0 - a) * (1.0 - before) / (1.0 - product)

    def guessed(self, x: Tensor, t: int) -> Tensor:
        """Return x_0 as the network sees it in x_t, from -1 to 1, (b, D)."""
        e = self.predicted_noise(x, torch.full((len(x),), t, device=x.device))
        product = float(self.products[t])
        return ((x - math.sqrt(1.0 - product) * e) / math.sqrt(product)).clamp(-1.0, 1.0)

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the variational bound with one noise for each step, (b,)."""
        x0 = self.form.scaled(x.flatten(1))
        last = float(self.products[-1])
        # KL(q(x_T | x_0) || N(0, I))
        bound = -0.5 * (last * x0.square() + (1.0 - last) - 1.0 - math.log(1.0 - last)).sum(1)
        for t in range(self._steps - 1, -1, -1):
            steps = torch.full((len(x),), t, device=x.device)
            xt = self.noised(x0, steps, noise.normal(self.form.dims))
            guess = self.guessed(xt, t)
            if t:
                (mean, variance), (own, _) = self.posterior(x0, xt, t), self.posterior(guess, xt, t)
                bound = bound - (mean - own).square().sum(1) / (2.0 * variance)
            else:
                bound = bound + self._decoded(x.flatten(1), guess)
        return bound

    def _decoded(self, levels: Tensor, mean: Tensor) -> Tensor:
        """Return ln of the mass of N(mean, b_1) in each level's interval, the outer ones open, (b,)."""
        width = 1.0 / max(self.form.levels - 1, 1)
        deviation = math.sqrt(1.0 - float(self.alphas[0]))
        centre = self.form.scaled(levels)
        low = torch.where(levels == 0, -torch.inf, (centre - width - mean) / deviation)
        high = torch.where(levels == self.form.levels - 1, torch.inf, (centre + width - mean) / deviation)
        # on the side where the tails are small, so that a difference of numbers near 1 does not vanish
        flip = low > 0
        below, above = torch.where(flip, -high, low), torch.where(flip, -low, high)
        mass: Tensor = torch.special.ndtr(above.double()) - torch.special.ndtr(below.double())
        return mass.clamp_min(1e-30).log().sum(1).float()

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return images by ancestral sampling, T steps."""
        x = torch.randn(count, self.form.dims, generator=generator, device=generator.device)
        for t in range(self._steps - 1, -1, -1):
            mean, variance = self.posterior(self.guessed(x, t), x, t)
            e = torch.randn(x.shape, generator=generator, device=x.device)
            x = mean + math.sqrt(variance) * e
        return self.form.nearest(x)


class Ddim(Ddpm):
    """DDPM, sampled by DDIM (Song et al. 2021): no noise after the first, and few steps.

    x_s = sqrt(a_s) x_0(x_t) + sqrt(1 - a_s) e(x_t), s the step before t among those taken.

    Args:
        form: the images.
        hidden: units of the network.
        blocks: its residual blocks.
        steps: T.
        schedule: see `noise_schedule`.
        taken: steps of a sample, evenly spaced among T.
    """

    def __init__(
        self, form: Form, hidden: int, blocks: int, steps: int, schedule: Schedule = "cosine", taken: int = 20
    ) -> None:
        super().__init__(form, hidden, blocks, steps, schedule)
        self._taken = min(taken, steps)

    def from_noise(self, x: Tensor) -> Tensor:
        """Return the images, from -1 to 1, that noise x (b, D) leads to; nothing is drawn."""
        places = torch.linspace(self._steps - 1, 0, self._taken).round().long().tolist()
        for t, s in zip(places, [*places[1:], -1], strict=True):
            guess = self.guessed(x, t)
            product, before = float(self.products[t]), float(self.products[s]) if s >= 0 else 1.0
            e = (x - math.sqrt(product) * guess) / math.sqrt(1.0 - product)
            x = math.sqrt(before) * guess + math.sqrt(1.0 - before) * e
        return x

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(count, self.form.dims, generator=generator, device=generator.device)
        return self.form.nearest(self.from_noise(x))


class ScoreSde(Member):
    """Score-based SDE, variance preserving (Song et al. 2021): dx = -b(t)/2 x dt + sqrt(b(t)) dw, b from 0.1 to 20.

    x_t = m(t) x_0 + s(t) e, m = e^{-B(t)/2}, s^2 = 1 - m^2, B the integral of b. The network predicts e, so the score
    is -e(x, t) / s(t). Samples: Euler-Maruyama on the reverse SDE. Density: the probability-flow ODE dx/dt = -b/2 (x +
    score), solved in steps, its trace by Hutchinson's estimate.

    Args:
        form: the images.
        hidden: units of the network.
        blocks: its residual blocks.
        steps: steps of a sample and of a density.
    """

    rate = 3.0
    _LOW, _HIGH, _FIRST = 0.1, 20.0, 1e-3

    def __init__(self, form: Form, hidden: int, blocks: int, steps: int) -> None:
        super().__init__(form)
        self._steps = steps
        self.net = TimeNet(form.dims, hidden, blocks)

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return m(t) and s(t), in the shape of t."""
        total = self._LOW * t + 0.5 * (self._HIGH - self._LOW) * t.square()
        m = (-0.5 * total).exp()
        return m, (-torch.expm1(-total)).sqrt()

    def loss(self, batch: Batch) -> Tensor:
        x0 = 2.0 * self.form.dequantised(batch.x, batch.noise) - 1.0
        t = self._FIRST + (1.0 - self._FIRST) * batch.noise.uniform(1)
        e = batch.noise.normal(self.form.dims)
        m, s = self.marginal(t)
        found: Tensor = self.net(m * x0 + s * e, t[:, 0])
        return (found - e).square().mean()

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the network's grad ln p_t(x), (b, D)."""
        out: Tensor = self.net(x, t)
        return -out / self.marginal(t)[1][:, None]

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the probability-flow ODE's dx/dt, (b, D)."""
        return -0.5 * self._rate(t)[:, None] * (x + self.score(x, t))

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """Return ln N(x_1) + the integral of tr(dv/dx) + D ln 2 - D ln M, an estimate, (b,)."""
        y = 2.0 * self.form.dequantised(x, noise) - 1.0
        probes = signs(noise, self.form.dims)
        last, trace = integrated_with_trace(self.velocity, y, self._FIRST, 1.0, self._steps, probes)
        return normal_log_prob(last) + trace + self.form.dims * (math.log(2.0) - math.log(self.form.levels))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(count, self.form.dims, generator=generator, device=generator.device)
        step = (1.0 - self._FIRST) / self._steps
        for place in range(self._steps):
            t = torch.full((count,), 1.0 - place * step, device=x.device)
            rate = self._rate(t)[:, None]
            drift = 0.5 * rate * x + rate * self.score(x, t)
            e = torch.randn(x.shape, generator=generator, device=x.device)
            x = x + step * drift + (rate * step).sqrt() * e * float(place < self._steps - 1)
        return self.form.quantised(0.5 * (x + 1.0))

    def _rate(self, t: Tensor) -> Tensor:
        return self._LOW + (self._HIGH - self._LOW) * t
