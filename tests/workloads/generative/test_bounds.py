"""Bounds and estimates: the order of ELBO, IWAE and ln p(x); diffusion's closed forms; deterministic samplers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support_generative import batch, every_image, generator, member, stirred
from torch import Tensor, nn

from fedloom.workloads.generative.diffusion import Ddim, Ddpm, ScoreSde
from fedloom.workloads.generative.member import Batch, Form
from fedloom.workloads.generative.noise import DrawnNoise, Noise
from fedloom.workloads.generative.vae import Vae, VqVae, gaussian_kl

FORM = Form(height=2, width=2, levels=3)


def noise(count: int, seed: int = 3) -> DrawnNoise:
    return DrawnNoise(count, generator(seed))


class LinearGaussian(Vae):
    """z ~ N(0, I_2), x = W z + 0.5 e: ln p(x) = ln N(x; 0, W W' + I/4), and the posterior is Gaussian.

    `spoiled` widens and moves the posterior, so that the bound is strict.
    """

    def __init__(self, spoiled: bool) -> None:
        super().__init__(FORM, 2, [3], 1, 1)
        self.w = torch.tensor([[1.0, 0.3], [-0.4, 0.8], [0.2, 0.0], [0.5, -1.0]], dtype=torch.float64)
        self.w = torch.linalg.qr(self.w)[0] * torch.tensor([1.2, 0.7])  # orthogonal columns: a diagonal posterior
        self.spoiled = spoiled

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        precision = (self.w.T @ self.w).diagonal() / 0.25 + 1.0
        mean = (x @ self.w / 0.25) / precision
        log_var = (-precision.log()).expand_as(mean)
        return (0.6 * mean + 0.3, log_var + 0.7) if self.spoiled else (mean, log_var)

    def likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        return -0.5 * ((x - z @ self.w.T).square() / 0.25 + math.log(2 * math.pi * 0.25)).sum(1)

    def truth(self, x: Tensor) -> Tensor:
        covariance = self.w @ self.w.T + 0.25 * torch.eye(4, dtype=torch.float64)
        quadratic = (x @ covariance.inverse() * x).sum(1)
        found: Tensor = -0.5 * (quadratic + covariance.logdet() + 4 * math.log(2 * math.pi))
        return found


def test_with_the_true_posterior_every_bound_is_the_likelihood() -> None:
    made, x = LinearGaussian(spoiled=False), torch.randn(5, 4, generator=generator()).double()
    for samples in (1, 3):
        assert torch.allclose(made.bound(x, noise(5), samples), made.truth(x), atol=1e-6)


def test_the_bounds_rise_with_their_samples_and_stay_below_the_likelihood() -> None:
    made, x = LinearGaussian(spoiled=True), torch.randn(1, 4, generator=generator()).double()
    many, truth = x.expand(4000, -1), float(made.truth(x))
    elbo = made.elbo(many, noise(4000, 8))
    found = [elbo, *(made.bound(many, noise(4000, seed), k) for seed, k in enumerate((1, 10, 100)))]
    means = [float(each.mean()) for each in found]
    errors = [float(each.std()) / math.sqrt(4000) for each in found]
    assert abs(means[0] - means[1]) < 3 * (errors[0] + errors[1])  # the closed form of the KL changes no mean
    assert means[1] < means[2] < means[3] < truth + 3 * errors[3]
    assert truth - means[1] > 0.2 > truth - means[3]


def test_the_closed_kl_is_that_of_samples() -> None:
    mean, log_var = torch.tensor([[0.4, -1.0]]), torch.tensor([[0.5, -0.7]])
    z = mean + (0.5 * log_var).exp() * torch.randn(40000, 2, generator=generator())
    log_q = -0.5 * ((z - mean).square() / log_var.exp() + log_var).sum(1)
    values = log_q + 0.5 * z.square().sum(1)
    assert float(values.mean() - gaussian_kl(mean, log_var)) == pytest.approx(0.0, abs=3 * float(values.std()) / 200)


@pytest.mark.parametrize("name", ["vae", "iwae", "vqvae", "ddpm", "ddim", "realnvp", "glow", "maf", "gaussian"])
def test_a_bound_never_claims_more_than_probability_one(name: str) -> None:
    """Sum over all images of e^(mean bound) <= sum of p(x) = 1, by Jensen; dequantised densities are bounds, too."""
    made, images = stirred(member(name, FORM), size=0.3).eval(), every_image(FORM)
    if name == "gaussian":
        made.observe(batch(FORM, 40).x)
    with torch.no_grad():
        draws = torch.stack([made.log_prob(images, noise(len(images), seed)).double() for seed in range(60)])
    total = float(draws.mean(0).exp().sum())
    assert 0.0 < total <= 1.0 + 1e-3


def test_vq_vaes_encoder_learns_through_the_codes_and_its_prior_is_a_distribution() -> None:
    made: VqVae = member("vqvae", FORM)
    made.loss(batch(FORM)).backward()
    weight = next(made.encoder.parameters()).grad
    assert weight is not None and float(weight.abs().max()) > 0 and made.book.grad is not None
    codes = every_image(Form(1, 4, 5))
    with torch.no_grad():
        assert float(made.prior.log_prob(codes, noise(len(codes))).exp().sum()) == pytest.approx(1.0, abs=1e-4)
        z, numbers = made.encoded(batch(FORM).x)
        nearest = torch.cdist(z, made.book.expand(8, -1, -1)).argmin(2)
    assert torch.equal(numbers, nearest)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_noising_at_once_is_noising_step_by_step(schedule: str) -> None:
    """x_t = sqrt(1 - b) x_{t-1} + sqrt(b) e repeated: mean sqrt(a) x_0, variance 1 - a."""
    made: Ddpm = member("ddpm", FORM, diffusion={"steps": 30, "schedule": schedule})
    mean, variance = 1.0, 0.0
    for t in range(30):
        b = 1.0 - float(made.alphas[t])
        mean, variance = mean * math.sqrt(1 - b), variance * (1 - b) + b
        x = made.noised(torch.ones(1, 1), torch.tensor([t]), torch.zeros(1, 1))
        spread = made.noised(torch.zeros(1, 1), torch.tensor([t]), torch.ones(1, 1))
        assert float(x) == pytest.approx(mean, abs=1e-6) and float(spread) ** 2 == pytest.approx(variance, abs=1e-6)
    assert mean < 0.02


def test_diffusions_posterior_is_bayes() -> None:
    made: Ddpm = member("ddpm", FORM, diffusion={"steps": 10})
    x0, xt, t = torch.tensor([[0.7]]), torch.tensor([[-0.2]]), 6
    a, before = float(made.alphas[t]), float(made.products[t - 1])
    # q(x_{t-1} | x_0) = N(sqrt(before) x0, 1 - before), q(x_t | x_{t-1}) = N(sqrt(a) x_{t-1}, 1 - a)
    precision = 1 / (1 - before) + a / (1 - a)
    mean = (math.sqrt(before) * 0.7 / (1 - before) + math.sqrt(a) * -0.2 / (1 - a)) / precision
    found, variance = made.posterior(x0, xt, t)
    assert float(found) == pytest.approx(mean, abs=1e-5) and variance == pytest.approx(1 / precision, abs=1e-6)


def test_predicting_the_true_noise_has_no_loss_and_the_levels_masses_sum_to_one() -> None:
    made: Ddpm = member("ddpm", FORM)
    given = batch(FORM, 6)
    x0 = FORM.scaled(given.x.flatten(1))

    class Oracle(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            product = made.products[(t * 4).round().long() - 1][:, None]
            return (x - product.sqrt() * x0) / (1 - product).sqrt()

    made.net = Oracle()  # type: ignore[assignment]
    assert float(made.loss(given)) < 1e-6
    centre = torch.rand(5, 1, generator=generator()) * 2 - 1
    masses = [made._decoded(torch.full((5, 1), level), centre).exp() for level in range(FORM.levels)]
    assert torch.allclose(torch.stack(masses).sum(0), torch.ones(5), atol=1e-5)


def test_ddim_is_deterministic_and_ancestral_sampling_is_not() -> None:
    form = Form(4, 4, 9)
    made: Ddim = stirred(member("ddim", form, diffusion={"steps": 20, "ddim_steps": 7}), size=0.05)
    start = torch.randn(3, 16, generator=generator())
    with torch.no_grad():
        first = made.from_noise(start)
        torch.manual_seed(123)
        assert torch.equal(first, made.from_noise(start)) and float(first.std()) > 0
        assert torch.equal(made.sample(3, generator(5)), made.sample(3, generator(5)))
        drawn, after = generator(5), generator(5)
        made.sample(3, drawn)
        torch.randn(3, 16, generator=after)
        assert torch.equal(torch.rand(1, generator=drawn), torch.rand(1, generator=after)), (
            "more than the start is drawn"
        )


class _GaussianScore(nn.Module):
    """The noise that the exact score of N(0, c^2) data predicts: e = s x / (m^2 c^2 + s^2)."""

    def __init__(self, made: ScoreSde, deviation: float) -> None:
        super().__init__()
        self.made, self.deviation = made, deviation

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        m, s = self.made.marginal(t)
        return s[:, None] * x / ((m * self.deviation).square() + s.square())[:, None]


class _Still(DrawnNoise):
    """Uniform numbers of 1/2, so that dequantised images are known."""

    def uniform(self, *shape: int) -> Tensor:
        return torch.full((2, *shape), 0.5) if shape == (4,) and self.first() else super().uniform(*shape)

    def first(self) -> bool:
        self.calls = getattr(self, "calls", 0) + 1
        return self.calls == 1


def test_the_score_sde_with_an_exact_score_has_the_exact_density_and_spread() -> None:
    made: ScoreSde = member("score_sde", FORM, diffusion={"steps": 300})
    made.net = _GaussianScore(made, 0.4)  # type: ignore[assignment]
    x = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]]).reshape(2, 1, 2, 2)
    given: Noise = _Still(2, generator())
    y = 2 * (x.flatten(1).numpy() + 0.5) / 3 - 1
    expected = (-0.5 * (y / 0.4) ** 2 - math.log(0.4 * math.sqrt(2 * math.pi))).sum(1) + 4 * math.log(2 / 3)
    assert made.log_prob(x, given).numpy() == pytest.approx(expected, abs=0.05)
    fine = ScoreSde(Form(2, 2, 256), 4, 1, 300)
    fine.net = _GaussianScore(fine, 0.25)  # type: ignore[assignment]
    samples = (fine.sample(4000, generator()).double() + 0.5) / 128 - 1
    assert float(samples.std()) == pytest.approx(0.25, rel=0.05) and abs(float(samples.mean())) < 0.01


def test_flow_matching_learns_the_velocity_between_its_ends() -> None:
    """For one image the best velocity at (x, t) is (y - x) / (1 - t) apart from the noise added in dequantising."""
    form = Form(1, 2, 64)
    made, x = member("flow_matching", form, flow={"matching_hidden": 32, "solver_steps": 20}), torch.tensor([[10, 50]])
    optimizer, drawn = torch.optim.Adam(made.parameters(), lr=3e-3), generator()
    for _ in range(300):
        optimizer.zero_grad()
        given = x.expand(64, -1).reshape(64, 1, 1, 2)
        made.loss(Batch(given, torch.zeros(64).long(), DrawnNoise(64, drawn), drawn)).backward()
        optimizer.step()
    with torch.no_grad():
        samples = made.sample(200, generator()).flatten(1).double().numpy()
    assert np.abs(samples.mean(0) - [10, 50]).max() < 2.5 and samples.std(0).max() < 6
