"""Attacks on linear models, where the worst image in the ball is known."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedloom.core.errors import UsageError
from fedloom.workloads._attacks.auto import STAGES, auto_attack
from fedloom.workloads._attacks.gradient import evaluating, fgsm, pgd
from fedloom.workloads._attacks.losses import cross_entropy, divergence_from, margin

SHAPE = (1, 4, 4)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(5)


def linear(classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).requires_grad_(False)


def points(count: int, classes: int) -> tuple[Tensor, Tensor]:
    return torch.rand(count, *SHAPE), torch.arange(count) % classes


def linear_layer(model: nn.Sequential) -> nn.Linear:
    (found,) = (part for part in model if isinstance(part, nn.Linear))
    return found


def worst_of_two(model: nn.Sequential, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """Two classes: the margin falls fastest along sign(w_other - w_y), whatever the point, and boxes clip exactly."""
    weight = linear_layer(model).weight
    direction = (weight[1 - y] - weight[y]).sign().reshape(x.shape)
    return (x + epsilon * direction).clamp(0, 1)


@pytest.mark.parametrize("loss", [cross_entropy, margin])
@pytest.mark.parametrize("start", ["clean", "uniform", "normal"])
def test_pgd_on_two_linear_classes_is_the_corner_of_the_ball(loss: object, start: str) -> None:
    model, (x, y) = linear(2), points(40, 2)
    found = pgd(model, x, y, epsilon=0.2, step_size=0.05, steps=9, start=start, loss=loss)  # type: ignore[arg-type]
    torch.testing.assert_close(found, worst_of_two(model, x, y, 0.2), rtol=0, atol=2e-7)


def test_fgsm_on_two_linear_classes_is_the_corner_in_one_step() -> None:
    model, (x, y) = linear(2), points(40, 2)
    torch.testing.assert_close(fgsm(model, x, y, epsilon=0.2), worst_of_two(model, x, y, 0.2), rtol=0, atol=2e-7)


def test_cw_pgd_reaches_the_least_margin_of_many_linear_classes() -> None:
    """The least margin is the least over rivals c of each corner's: z_y - z_c - eps |w_y - w_c|_1, without clipping."""
    model, (x, y) = linear(5), points(60, 5)
    x = 0.4 + 0.2 * x  # the box is out of reach
    weight, bias = linear_layer(model).weight.numpy(), linear_layer(model).bias.numpy()
    flat, rows = x.reshape(60, -1).numpy(), np.arange(60)
    logits = flat @ weight.T + bias
    gaps = logits[rows, y][:, None] - logits - 0.2 * np.abs(weight[y][:, None] - weight[None]).sum(2)
    gaps[rows, y] = np.inf
    found = np.full(60, np.inf)
    for _ in range(5):
        moved = pgd(model, x, y, epsilon=0.2, step_size=0.05, steps=40, loss=margin).reshape(60, -1).numpy()
        z = moved @ weight.T + bias
        others = z.copy()
        others[rows, y] = -np.inf
        found = np.minimum(found, z[rows, y] - others.max(1))
    assert (found >= gaps.min(1) - 1e-5).all()  # nothing lies below the optimum
    assert np.isclose(found, gaps.min(1), atol=1e-4).mean() > 0.9


def test_the_losses_are_their_formulas() -> None:
    logits, y = torch.tensor([[1.0, 3.0, 0.5], [2.0, -1.0, 0.0]]), torch.tensor([0, 0])
    assert float(margin(logits, y)) == pytest.approx((3.0 - 1.0) + (0.0 - 2.0))
    p, q = (np.exp(z) / np.exp(z).sum() for z in (np.array([1.0, 3.0, 0.5]), np.array([0.0, 1.0, 2.0])))
    moved = torch.tensor([[0.0, 1.0, 2.0]])
    assert float(divergence_from(logits[:1])(moved, y[:1])) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.03, 0.3])
def test_nothing_leaves_the_ball_or_the_range(epsilon: float) -> None:
    model, (x, y) = linear(10), points(50, 10)
    x[0], x[1] = 0.0, 1.0
    for loss in (cross_entropy, margin):
        for steps in (0, 1, 7):
            moved = pgd(model, x, y, epsilon=epsilon, step_size=0.1, steps=steps, loss=loss)
            assert float((moved - x).abs().max()) <= epsilon + 1e-6
            assert float(moved.min()) >= 0.0 and float(moved.max()) <= 1.0 and not moved.requires_grad


def test_attacks_leave_mode_weights_and_gradients_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, y = points(8, 4)
    with evaluating(model):
        assert not any(part.training for part in model.modules())
        pgd(model, x, y, epsilon=0.1, step_size=0.1, steps=3)
    assert all(part.training for part in model.modules()) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_auto_attack_on_linear_classes_finds_exactly_the_points_that_can_be_broken() -> None:
    pytest.importorskip("pyautoattack")
    model, (x, _) = linear(10), points(60, 10)
    x = 0.3 + 0.4 * x
    weight, bias = linear_layer(model).weight.numpy(), linear_layer(model).bias.numpy()
    logits = x.reshape(60, -1).numpy() @ weight.T + bias
    y = logits.argmax(1)
    epsilon, rows = 0.12, np.arange(60)
    least = logits[rows, y][:, None] - logits - epsilon * np.abs(weight[y][:, None] - weight[None]).sum(2)
    least[rows, y] = np.inf
    verdicts = auto_attack(model, x, torch.from_numpy(y), epsilon=epsilon, seed=1, iterations=20, queries=20)
    safe = least.min(1) > 0
    assert 5 < safe.sum() < 55
    assert (verdicts[STAGES[-1]].numpy() == safe).mean() >= 0.98
    assert verdicts["clean"].all()
    for before, after in zip(("clean", *STAGES), STAGES, strict=False):
        assert not (verdicts[after] & ~verdicts[before]).any()


def test_auto_attack_needs_four_classes() -> None:
    pytest.importorskip("pyautoattack")
    model, (x, y) = linear(3), points(6, 3)
    with pytest.raises(UsageError, match="at least 4 classes, the data has 3"):
        auto_attack(model, x, y, epsilon=0.1, seed=1)


def test_a_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model, (x, y) = linear(5), points(6, 5)
    with pytest.raises(UsageError, match=r"pyautoattack.*fedloom\[attacks\]"):
        auto_attack(model, x, y, epsilon=0.1, seed=1)
