"""MaNo's score and its rivals a second way: the released code's steps in torch, linear programmes, whole matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog

from fedloom.core.seeds import generator
from fedloom.strategies.mano.monitor.score import Sums, batch_mean, choose
from fedloom.strategies.mano.monitor.softrun import softmax, taylor
from fedloom.strategies.mano.workload import rivals

RNG = generator(1, "scores a second way")
LOGITS = 3.0 * RNG.normal(size=(257, 10))
TENSOR = torch.tensor(LOGITS)


def score_of(shares: torch.Tensor) -> float:
    return float(torch.norm(shares, p=4) / shares.numel() ** 0.25)


def test_both_branches_are_the_released_codes_steps() -> None:
    sums = Sums.of(LOGITS)
    assert sums.score("softmax") == pytest.approx(score_of(TENSOR.softmax(1)), abs=1e-12)
    positive = TENSOR + 1 + TENSOR**2 / 2
    normalised = F.normalize(positive - positive.min(1, keepdim=True)[0], dim=1, p=1)
    assert sums.score("taylor") == pytest.approx(score_of(normalised), abs=1e-12)
    uniform = torch.full_like(TENSOR, 0.1)
    assert sums.criterion == pytest.approx(float(F.cross_entropy(TENSOR, uniform)), abs=1e-12)
    assert (choose(5.0, 10), choose(5.0001, 10)) == ("taylor", "softmax")
    batches = [score_of(TENSOR[at : at + 128].softmax(1)) for at in (0, 128, 256)]
    assert batch_mean(LOGITS, "softmax") == pytest.approx(np.mean(batches), abs=1e-12)


@pytest.mark.parametrize("p", [2, 3, 4, 6])
def test_the_score_is_tsallis_entropy(p: int) -> None:
    """S^p = 1/K - p (p - 1) / K mean H_p, H_p = (1 - Σ q^p) / (p (p - 1))."""
    shares = taylor(LOGITS)
    entropy = (1 - (shares**p).sum(1)) / (p * (p - 1))
    want = 1 / 10 - p * (p - 1) / 10 * entropy.mean()
    assert Sums.of(LOGITS, power=p).score("taylor") ** p == pytest.approx(want, abs=1e-12)


def test_order_three_has_its_factorial_and_sums_of_parts_add() -> None:
    values = 1 + LOGITS + LOGITS**2 / 2 + LOGITS**3 / 6
    values = values - values.min(1, keepdims=True)
    np.testing.assert_allclose(taylor(LOGITS, order=3), values / values.sum(1, keepdims=True))
    parts, whole = Sums.of(LOGITS[:100]) + Sums.of(LOGITS[100:]), Sums.of(LOGITS)
    assert parts.score("taylor") == pytest.approx(whole.score("taylor"), abs=1e-12)
    assert parts.criterion == pytest.approx(whole.criterion, abs=1e-12)


def test_transport_is_a_linear_programme() -> None:
    count = 40
    shares, labels = softmax(LOGITS[:count]), RNG.integers(0, 10, count)
    costs = 1 - shares[:, labels]
    np.testing.assert_allclose(costs, np.abs(shares[:, None] - np.eye(10)[labels][None]).sum(2) / 2)
    marginals = np.zeros((2 * count, count * count))
    for i in range(count):
        marginals[i, i * count : (i + 1) * count] = 1
        marginals[count + i, i::count] = 1
    least = linprog(costs.ravel(), A_eq=marginals, b_eq=np.full(2 * count, 1 / count)).fun
    assert rivals.transport_costs(shares, labels).mean() == pytest.approx(least, abs=1e-8)


def test_nuclear_and_energy_are_their_definitions() -> None:
    shares = softmax(LOGITS)
    assert rivals.nuclear(shares) == pytest.approx(np.linalg.svd(shares)[1].sum() / np.sqrt(10 * 257))
    energies = -torch.logsumexp(TENSOR, 1)
    assert rivals.meta_energy(LOGITS) == pytest.approx(-float(torch.log_softmax(energies, 0).mean()))
