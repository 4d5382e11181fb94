"""Entropy models: order of coding, causality, probabilities that sum to one, integer tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support_llic import net
from torch import Tensor

from fedloom.workloads.llic.prior import FactorisedPrior
from fedloom.workloads.llic.quantising import Noise, gaussian_mass
from fedloom.workloads.llic.tables import TOTAL, gaussian_tables, prior_tables, scales, thresholds

ENTROPY_MODELS = ["llic-elic", "llic-stf", "llic-tcm"]


class Recorder:
    """Takes given values, and writes down what was expected of each part."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.parts: list[tuple[slice, Tensor | None, Tensor, Tensor]] = []

    def __call__(self, channels: slice, where: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
        self.parts.append((channels, where, mean, scale))
        values = self.values[:, channels]
        return values if where is None else values * where


@pytest.mark.parametrize("kind", ENTROPY_MODELS)
def test_a_part_depends_on_earlier_ones_and_the_hyper_latent_alone(kind: str) -> None:
    made = net(kind)
    torch.manual_seed(1)
    z, y = torch.randn(1, 6, 1, 2), torch.randn(1, 10, 4, 8)
    with torch.inference_mode():
        first = Recorder(y)
        made.entropy.run(z, first)
        for number, (channels, where, _, _) in enumerate(first.parts):
            other = y.clone()
            places = torch.ones(4, 8, dtype=torch.bool) if where is None else where
            other[:, channels] += 3.0 * places
            changed = Recorder(other)
            made.entropy.run(z, changed)
            for before, after in zip(first.parts[: number + 1], changed.parts, strict=False):
                at = slice(None) if before[1] is None else before[1]
                assert torch.equal(before[2][:, :, at], after[2][:, :, at])
                assert torch.equal(before[3][:, :, at], after[3][:, :, at])
        if len(first.parts) > 1:
            assert not torch.equal(first.parts[-1][2], changed.parts[-1][2]) or number + 1 == len(first.parts)


@pytest.mark.parametrize("kind", ENTROPY_MODELS)
def test_later_parts_do_see_earlier_ones(kind: str) -> None:
    made = net(kind)
    torch.manual_seed(2)
    z, y = torch.randn(1, 6, 1, 1), torch.randn(1, 10, 4, 4)
    with torch.inference_mode():
        one, other = Recorder(y), Recorder(y + torch.eye(10)[0][None, :, None, None])
        made.entropy.run(z, one)
        made.entropy.run(z, other)
    assert not torch.equal(one.parts[1][2], other.parts[1][2])


@pytest.mark.parametrize("kind", ENTROPY_MODELS)
def test_the_parts_cover_every_value_once(kind: str) -> None:
    made, seen = net(kind), torch.zeros(10, 4, 4)
    recorder = Recorder(torch.zeros(1, 10, 4, 4))
    with torch.inference_mode():
        made.entropy.run(torch.zeros(1, 6, 1, 1), recorder)
    for channels, where, _, _ in recorder.parts:
        seen[channels] += 1 if where is None else where
    assert bool((seen == 1).all())


def test_masses_are_those_of_the_distributions_and_sum_to_one() -> None:
    symbols = torch.arange(-60, 61, dtype=torch.float64)
    for scale in (0.11, 1.0, 7.5):
        mass = gaussian_mass(symbols, torch.full_like(symbols, scale))
        by_hand = [
            0.5 * (math.erf((k + 0.5) / scale / 2**0.5) - math.erf((k - 0.5) / scale / 2**0.5)) for k in range(-5, 6)
        ]
        assert np.allclose(mass[55:66], np.maximum(by_hand, 1e-9), atol=1e-12)
        assert float(mass.sum()) == pytest.approx(1.0, abs=1e-6)
    torch.manual_seed(3)
    prior = FactorisedPrior(3).double()
    with torch.no_grad():
        for each in (*prior.biases, *prior.factors):
            each.add_(0.3 * torch.randn_like(each))
    z = torch.arange(-200, 201, dtype=torch.float64).expand(3, -1)[None, :, :, None]
    assert torch.allclose(prior.likelihood(z).sum(2).flatten(), torch.ones(3, dtype=torch.float64), atol=1e-4)


def test_the_quantile_loss_moves_quantiles_alone() -> None:
    torch.manual_seed(4)
    prior = FactorisedPrior(2)
    prior.quantile_loss().backward()
    with_gradient = {name for name, p in prior.named_parameters() if p.grad is not None}
    assert with_gradient == {"quantiles"}
    optimizer = torch.optim.Adam([prior.quantiles], lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        prior.quantile_loss().backward()
        optimizer.step()
    assert torch.allclose(prior.logits(prior.quantiles)[:, 1], torch.zeros(2), atol=0.2)


def test_tables_are_whole_numbers_that_sum_to_the_total() -> None:
    torch.manual_seed(5)
    made = [*gaussian_tables(), *prior_tables(FactorisedPrior(4).double())]
    for table in made:
        assert table.weights.dtype == np.int64 and table.weights.min() >= 1 and table.weights.sum() == TOTAL
    one = gaussian_tables()[20]
    scale = scales()[20]
    mass = math.erf(0.5 / scale / 2**0.5)
    assert one.weights[-one.first] / TOTAL == pytest.approx(mass, abs=len(one.weights) / TOTAL)
    assert len(thresholds()) == len(scales()) - 1
    assert scales()[[0, -1]].tolist() == pytest.approx([0.11, 256.0])


def test_noise_bits_are_the_expected_code_length() -> None:
    """Uniform noise added to a standard normal costs -log2 of the mass around it, added up over all parts."""
    torch.manual_seed(6)
    y = torch.randn(1, 4, 3, 3)
    take = Noise(y)
    torch.manual_seed(7)
    values = take(slice(0, 4), None, torch.zeros_like(y), torch.ones_like(y))
    torch.manual_seed(7)
    noisy = y + torch.rand_like(y) - 0.5
    assert float(take.bits) == pytest.approx(
        float(-torch.log2(gaussian_mass(noisy, torch.ones_like(y))).sum()), rel=1e-6
    )
    assert torch.equal(values, torch.round(y))
