"""GANs' losses, turns and norms; Langevin chains and replay buffers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support_generative import batch, generator, member
from torch import Tensor, nn

from fedloom.workloads.generative.energy import LangevinEnergy, langevin
from fedloom.workloads.generative.gan import AdversarialModel, HingeSpectral, SpectralNorm, WassersteinGp
from fedloom.workloads.generative.member import Form

FORM = Form(height=8, width=8, levels=17, classes=3)


class Scores(nn.Module):
    """A critic that reads an image's first pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :1]


def losses(name: str, real: list[float], fake: list[float]) -> tuple[float, float]:
    made: AdversarialModel = member(name, FORM)
    made.critic = Scores()  # type: ignore[assignment]
    images = [torch.tensor(values)[:, None, None, None].expand(-1, 1, 8, 8) for values in (real, fake)]
    return (
        float(made.critic_loss(images[0], images[1], batch(FORM, len(real)))),
        float(made.generator_loss(torch.tensor(fake)[:, None])),
    )


def test_the_losses_are_the_formulas() -> None:
    real, fake = [0.5, -2.0, 3.0], [1.5, -0.2, 0.4]
    r, f = np.array(real), np.array(fake)
    critic, player = losses("gan", real, fake)
    assert critic == pytest.approx(np.log1p(np.exp(-r)).mean() + np.log1p(np.exp(f)).mean(), abs=1e-6)
    assert player == pytest.approx(np.log1p(np.exp(-f)).mean(), abs=1e-6)
    critic, player = losses("hinge", real, fake)
    assert critic == pytest.approx(np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean(), abs=1e-6)
    assert player == pytest.approx(-f.mean(), abs=1e-6)
    critic, player = losses("wgan_gp", real, fake)  # the slope of `Scores` has norm 1: no penalty
    assert critic == pytest.approx(f.mean() - r.mean(), abs=1e-5) and player == pytest.approx(-f.mean(), abs=1e-6)


def test_the_gradient_penalty_is_ten_times_the_squared_excess() -> None:
    made: WassersteinGp = member("wgan_gp", FORM)

    class Steep(Scores):
        def forward(self, x: Tensor) -> Tensor:
            return 3.0 * super().forward(x)

    made.critic = Steep()  # type: ignore[assignment]
    same = torch.zeros(4, 1, 8, 8)
    assert float(made.critic_loss(same, same, batch(FORM, 4))) == pytest.approx(10 * (3 - 1) ** 2, abs=1e-4)


@pytest.mark.parametrize(("name", "period"), [("gan", 2), ("hinge", 2), ("wgan_gp", 4)])
def test_the_critic_moves_then_the_generator(name: str, period: int) -> None:
    made = member(name, FORM)
    assert [made.turn(step) for step in range(2 * period)] == 2 * ([*["critic"] * (period - 1), "generator"])
    for turn, other in (("critic", "generator"), ("generator", "critic")):
        while made.turn(step := 0 if turn == "critic" else period - 1) != turn:
            raise AssertionError(step)
        made.zero_grad(set_to_none=True)
        made.loss(batch(FORM)).backward()
        assert all(p.grad is not None for p in made.players()[turn].parameters() if p.requires_grad)
        if turn == "critic":
            assert all(p.grad is None for p in made.players()[other].parameters())


@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_the_spectral_norm_is_the_largest_singular_value(layer: str) -> None:
    torch.manual_seed(1)
    made = SpectralNorm(nn.Linear(12, 7) if layer == "linear" else nn.Conv2d(3, 6, 2)).train()
    exact = float(torch.linalg.svdvals(made.layer.weight.detach().flatten(1))[0])
    for _ in range(60):
        found = float(made.sigma().detach())
    assert found == pytest.approx(exact, rel=1e-3)
    x = torch.randn(2, 12) if layer == "linear" else torch.randn(2, 3, 4, 4)
    made.eval()
    before = made.u.clone()
    plain = (
        F.linear(x, made.layer.weight / exact, made.layer.bias)
        if layer == "linear"
        else F.conv2d(x, made.layer.weight / exact, made.layer.bias)
    )
    assert torch.allclose(made(x), plain, rtol=2e-3, atol=2e-3) and torch.equal(made.u, before)
    assert all(isinstance(each, SpectralNorm) for each in member("hinge", FORM).critic if hasattr(each, "layer"))
    assert isinstance(member("hinge", FORM), HingeSpectral)


def test_langevin_dynamics_sample_a_gaussian_energy() -> None:
    """E = 1/2 (x - m)' P (x - m): mean m, covariance P^-1, within 5 % after burn-in; the step adds h P / 4 to it."""
    mean, precision = torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.6], [0.6, 1.0]])

    def energy(x: Tensor) -> Tensor:
        return 0.5 * ((x - mean) @ precision * (x - mean)).sum(1)

    step = 0.05
    x = langevin(energy, torch.zeros(6000, 2), 300, step, math.sqrt(step), generator())
    covariance = np.linalg.inv(precision.numpy())
    assert np.abs(x.mean(0).numpy() - mean.numpy()).max() < 0.05
    assert np.abs(np.cov(x.numpy().T) - covariance).max() < 0.05 * covariance.max() + 0.02


def test_the_chains_continue_from_what_was_stored() -> None:
    form = FORM

    def trained(stored: Tensor | None, rounds: int) -> Tensor:
        made: LangevinEnergy = member("langevin", form)
        drawn = generator(1)
        made.begin(stored, drawn)
        for number in range(rounds):
            made.negatives(8, generator(10 + number))
        assert made.replay is not None
        return made.replay

    once = trained(None, 1)
    assert once.shape == (16, 1, 8, 8) and float(once.abs().max()) <= 1.0
    untouched = (once == trained(None, 0)).flatten(1).all(1).sum()
    assert int(untouched) == 8, "a minibatch of eight moves eight of sixteen chains"
    made: LangevinEnergy = member("langevin", form)
    made.begin(once, generator(1))
    made.negatives(8, generator(11))
    assert made.replay is not None and torch.equal(made.replay, trained(None, 2))
    assert torch.equal(once, trained(None, 1)), "what was stored is changed"


def test_negatives_have_lower_energy_than_where_they_begin() -> None:
    made: LangevinEnergy = member("langevin", FORM, energy={"sampling_steps": 60, "channels": 8})
    start = made.fresh(32, generator())
    with torch.no_grad():
        x = made._chain(start, 60, generator())
        assert float(made.energy(x).mean()) < float(made.energy(start).mean())


@pytest.mark.parametrize("name", ["langevin", "jem", "rbm"])
def test_training_lowers_the_energy_of_images_below_that_of_noise(name: str) -> None:
    made = member(name, FORM, energy={"chains": 32, "steps": 4, "hidden": 6, "channels": 8})
    pattern = torch.zeros(32, 1, 8, 8, dtype=torch.int64)
    pattern[:, :, 2:6, 2:6] = 16
    optimizer, drawn = torch.optim.Adam(made.parameters(), lr=2e-3), batch(FORM, 32)
    for _ in range(30):
        optimizer.zero_grad()
        made.loss(type(drawn)(pattern, drawn.y, drawn.noise, drawn.generator)).backward()
        optimizer.step()
    energy = made.free_energy if name == "rbm" else lambda x: made.energy(FORM.scaled(x))
    with torch.no_grad():
        assert float(energy(pattern).mean()) < float(energy(batch(FORM, 32, seed=8).x).mean())
