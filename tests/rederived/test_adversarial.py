"""Adversarial training a second way: losses, perturbed weights, attacks and statistics as their authors wrote them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from fedloom.core.records import Array
from fedloom.core.seeds import generator
from fedloom.strategies.meat import ensembles
from fedloom.strategies.meat.workload.config import AttackSettings, Config, DefenseSettings
from fedloom.strategies.meat.workload.defenses import loss_of, perturbed
from fedloom.strategies.meat.workload.statistics import reestimate
from fedloom.strategies.meat.workload.weights import perturbation
from fedloom.workloads._attacks.gradient import fgsm, pgd

EPSILON, STEP = 0.1, 0.025
SUMMED = nn.KLDivLoss(reduction="sum")
EACH = nn.KLDivLoss(reduction="none")


def network() -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """A network in evaluation mode, images, nearby images and labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 3 * 3, 10))
    x, y = torch.rand(64, 1, 8, 8), torch.randint(0, 10, (64,))
    moved = (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x, moved, y


def within(x: Tensor, moved: Tensor) -> Tensor:
    return torch.min(torch.max(moved, x - EPSILON), x + EPSILON).clamp(0, 1)


def test_the_loss_of_trades() -> None:
    model, x, moved, y = network()
    want = F.cross_entropy(model(x), y) + 6 * SUMMED(F.log_softmax(model(moved), 1), F.softmax(model(x), 1)) / 64
    torch.testing.assert_close(loss_of(DefenseSettings(name="trades"))(model, x, moved, y), want, rtol=0, atol=1e-5)


def test_the_loss_of_mart_is_that_of_its_code_to_its_constants() -> None:
    model, x, moved, y = network()
    clean, other = model(x).softmax(1), model(moved).softmax(1)
    best = other.argsort(1)[:, -2:]
    rival = torch.where(best[:, -1] == y, best[:, -2], best[:, -1])
    own = clean.gather(1, y[:, None])[:, 0]
    boosted = F.cross_entropy(model(moved), y) + F.nll_loss(torch.log(1.0001 - other + 1e-12), rival)
    kept = (EACH(torch.log(other + 1e-12), clean).sum(1) * (1.0000001 - own)).sum() / 64
    found = loss_of(DefenseSettings(name="mart"))(model, x, moved, y)
    torch.testing.assert_close(found, boosted + 5 * kept, rtol=0, atol=2e-3)


def test_weights_are_perturbed_as_by_the_authors_proxy() -> None:
    model, _, moved, y = network()
    model.train()
    found = perturbation(model, lambda: F.cross_entropy(model(moved), y), 0.01)
    proxy = copy.deepcopy(model)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-F.cross_entropy(proxy(moved), y)).backward()
    optimizer.step()
    for (name, old), new in zip(model.state_dict().items(), proxy.state_dict().values(), strict=True):
        if old.ndim > 1 and "weight" in name:
            apart = new - old
            want = 0.01 * old.norm() / (apart.norm() + 1e-20) * apart
            torch.testing.assert_close(found[name], want, rtol=0, atol=1e-5)


def test_pgd_and_fgsm_are_their_definitions() -> None:
    model, x, _, y = network()
    torch.manual_seed(3)
    ours = pgd(model, x, y, epsilon=EPSILON, step_size=STEP, steps=10)
    torch.manual_seed(3)
    theirs = (x + torch.empty_like(x).uniform_(-EPSILON, EPSILON)).clamp(0, 1)
    for _ in range(10):
        theirs.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(theirs), y), theirs)
        theirs = within(x, theirs.detach() + STEP * slope.sign())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    once = (x + EPSILON * slope.sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(model, x, y, epsilon=EPSILON), once, rtol=0, atol=1e-6)


def test_the_attack_of_trades_climbs_the_divergence_in_evaluation_mode() -> None:
    model, x, _, y = network()
    torch.manual_seed(5)
    attack = AttackSettings(epsilon=EPSILON, step_size=STEP)
    ours = perturbed(model.train(), x, y, attack, DefenseSettings(name="trades"))
    torch.manual_seed(5)
    model.eval()
    theirs, target = within(x, x + 0.001 * torch.randn_like(x)), model(x).softmax(1).detach()
    for _ in range(10):
        theirs.requires_grad_()
        (slope,) = torch.autograd.grad(SUMMED(F.log_softmax(model(theirs), 1), target), theirs)
        theirs = within(x, theirs.detach() + STEP * slope.sign())
    # Where a slope is nearly 0 its sign may differ; the attacks are as strong.
    assert ((ours - theirs).abs() < 1e-5).float().mean() > 0.97
    with torch.no_grad():
        strength = [float(SUMMED(F.log_softmax(model(each), 1), target)) for each in (ours, theirs)]
    assert strength[0] == pytest.approx(strength[1], rel=0.02)


def test_the_median_of_six_snapshots_is_numpys() -> None:
    rng = generator(1, "snapshots")
    snapshots = [
        {"w": rng.normal(size=(5, 7)).astype(np.float32), "running_var": rng.random(4).astype(np.float32)}
        for _ in range(6)
    ]
    found = ensembles.median(snapshots, snapshots[0])
    for name in snapshots[0]:
        want: Array = np.median([each[name] for each in snapshots], axis=0)
        np.testing.assert_array_equal(found[name], want)


def test_cumulative_statistics_are_torchs() -> None:
    model, *_ = network()
    parts = [torch.rand(32, 1, 8, 8) for _ in range(20)]
    found, theirs = reestimate(copy.deepcopy(model), iter(parts), "cumulative"), copy.deepcopy(model)
    update_bn([[each] for each in parts], theirs)
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(found[name], theirs.state_dict()[name], rtol=0, atol=1e-5)


def test_the_step_sizes_of_120_rounds_are_those_of_the_released_script() -> None:
    shares, factors = zip(*Config().schedule, strict=True)
    for epoch in range(1, 121):
        theirs = np.interp(epoch, [0, 40, 80, 120], [1, 1, 0.1, 0.01])
        assert np.interp(epoch / 120, shares, factors) == pytest.approx(theirs)


@pytest.mark.slow
def test_autoattack_breaks_the_images_that_its_package_breaks() -> None:
    package = pytest.importorskip("pyautoattack")
    from fedloom.workloads._attacks.auto import auto_attack

    model, *_ = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x = torch.rand(600, 1, 8, 8)
    y = (x.flatten(1) @ torch.randn(64, 10)).argmax(1)
    model.train()
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()
    x, y = x[:100], y[:100]
    ours = auto_attack(model, x, y, epsilon=0.02, seed=1, queries=1000)
    theirs = package.AutoAttack(model, norm="Linf", eps=0.02, version="standard", seed=1)
    theirs.square.n_queries = 1000
    moved = theirs.run_standard_evaluation(x, y, batch_size=250)
    with torch.no_grad():
        right = model(moved[0] if isinstance(moved, tuple) else moved).argmax(1) == y
    assert torch.equal(ours["square"], right)
