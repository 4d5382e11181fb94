"""Adversarial training: losses and steps against plain PyTorch, what a client keeps, what rules refuse."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support_meat import act, build, experiment, initial
from torch import nn

from fedloom.core.errors import ConfigError, UsageError
from fedloom.core.records import MODEL, Record, arrays_sha256
from fedloom.core.seeds import generator
from fedloom.strategies.meat.workload.averaging import MovingAverage
from fedloom.strategies.meat.workload.config import AttackSettings, DefenseSettings
from fedloom.strategies.meat.workload.defenses import loss_of, perturbed
from fedloom.strategies.meat.workload.statistics import LEAST_BATCHES, reestimate
from fedloom.strategies.meat.workload.weights import perturbation, shift
from fedloom.workloads._vision.augment import augmented


def value(loss: torch.Tensor) -> float:
    return float(loss.detach())


def network() -> nn.Sequential:
    torch.manual_seed(3)
    norm = nn.BatchNorm2d(4)
    norm.num_batches_tracked = None  # as our networks have it
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    x = torch.rand(12, 1, 8, 8)
    return x, (x + 0.1 * torch.randn_like(x)).clamp(0, 1), torch.arange(12) % 5


def test_trades_is_cross_entropy_and_beta_divergences() -> None:
    model, (x, moved, y) = network().eval(), batch()
    p, q = model(x).softmax(1).detach().numpy(), model(moved).softmax(1).detach().numpy()
    want = -np.log(p[np.arange(12), y]).mean() + 6.0 * (p * np.log(p / q)).sum(1).mean()
    assert value(loss_of(DefenseSettings(name="trades"))(model, x, moved, y)) == pytest.approx(float(want), rel=1e-5)


def test_mart_weighs_divergences_by_the_doubt_about_the_clean_image() -> None:
    model, (x, moved, y) = network().eval(), batch()
    p, q = model(x).softmax(1).detach().numpy(), model(moved).softmax(1).detach().numpy()
    rows = np.arange(12)
    others = q.copy()
    others[rows, y] = 0.0
    boosted = -np.log(q[rows, y]) - np.log(1.0 - others.max(1))
    want = (boosted + 5.0 * (p * np.log(p / q)).sum(1) * (1.0 - p[rows, y])).mean()
    assert value(loss_of(DefenseSettings(name="mart"))(model, x, moved, y)) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("name", ["at", "trades", "mart"])
def test_training_attacks_raise_their_loss_and_stay_in_the_ball(name: Any) -> None:
    model, (x, _, y) = network().train(), batch()
    attack, defense = AttackSettings(epsilon=0.1, step_size=0.02, steps=8), DefenseSettings(name=name)
    running = model[1].running_mean.clone()  # type: ignore[operator]
    moved = perturbed(model, x, y, attack, defense)
    assert model.training and torch.equal(model[1].running_mean, running)  # type: ignore[arg-type]
    assert float((moved - x).abs().max()) <= 0.1 + 1e-6
    model.eval()
    clean, attacked = F.cross_entropy(model(x), y), F.cross_entropy(model(moved), y)
    assert attacked > clean if name != "trades" else not torch.equal(moved, x)
    assert perturbed(model, x, y, attack, DefenseSettings(name="none")) is x


def test_weight_perturbation_has_its_size_raises_the_loss_and_goes_away() -> None:
    model, (x, moved, y) = network().train(), batch()
    loss = loss_of(DefenseSettings())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = perturbation(model, lambda: loss(model, x, moved, y), 0.01)
    assert list(found) == ["0.weight", "4.weight"]  # neither biases nor normalisation
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for name, change in found.items():
        assert float(change.norm() / before[name].norm()) == pytest.approx(0.01, rel=1e-5)
    model.eval()
    least = value(loss(model, x, moved, y))
    shift(model, found, 1.0)
    assert value(loss(model, x, moved, y)) > least
    shift(model, found, -1.0)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=1e-7)


def test_an_epoch_of_one_client_is_plain_pytorch() -> None:
    """The loop of a script: attack in evaluation mode, step in training mode, torch's SGD with its momentum kept."""
    made = experiment()
    workload = build(made)
    record, state = initial(workload), None
    alone = workload.model()
    alone.load_state_dict(
        {name: torch.from_numpy(array.copy()) for name, array in record.groups[MODEL].items()}, strict=False
    )
    optimizer = torch.optim.SGD(alone.parameters(), lr=1.0, momentum=0.9, weight_decay=0.001, foreach=True)
    images = workload._images.train
    for round in (1, 2):
        update = act(workload, "train", {MODEL: record}, state=state, round=round)
        record, state = Record({MODEL: update.groups[MODEL]}), update.state
        rng = generator(1, "train", round, 0, 0)
        torch.manual_seed(int(rng.integers(2**63)))
        rows = workload.shard(0).rows
        optimizer.param_groups[0]["lr"] = workload.learning_rate(round)
        for part in torch.split(torch.from_numpy(rows[rng.permutation(len(rows))]), 32):
            x, y = images.x[part], images.y[part]
            alone.eval()
            low, high = (x - 0.15).clamp(min=0), (x + 0.15).clamp(max=1)
            moved = (x + torch.empty_like(x).uniform_(-0.15, 0.15)).clamp(low, high)
            for _ in range(3):
                moved.requires_grad_()
                (slope,) = torch.autograd.grad(F.cross_entropy(alone(moved), y, reduction="sum"), moved)
                moved = (moved.detach() + 0.05 * slope.sign()).clamp(low, high)
            alone.train()
            optimizer.zero_grad()
            F.cross_entropy(alone(moved), y).backward()
            optimizer.step()
    for name, array in record.groups[MODEL].items():
        np.testing.assert_allclose(array, alone.state_dict()[name].numpy(), rtol=2e-5, atol=2e-6)


def test_the_learning_rate_follows_the_papers_schedule() -> None:
    workload = build(experiment(rounds=120))
    # The released script counts epochs from 1: interp(epoch, [0, 40, 80, 120], [1, 1, 0.1, 0.01]).
    rates = [workload.learning_rate(epoch) / 0.05 for epoch in (1, 40, 41, 60, 80, 100, 120)]
    np.testing.assert_allclose(rates, [1.0, 1.0, 1.0 - 0.9 / 40, 0.55, 0.1, 0.055, 0.01])


def test_a_client_keeps_its_momentum_only_if_configured() -> None:
    for keep in (True, False):
        workload = build(experiment({"keep_momentum": keep}))
        record = initial(workload)
        first = act(workload, "train", {MODEL: record})
        assert (first.state is not None) == keep
        fresh = act(workload, "train", {MODEL: record}, round=2)
        again = act(workload, "train", {MODEL: record}, round=2, state=first.state)
        same = arrays_sha256(fresh.groups[MODEL]) == arrays_sha256(again.groups[MODEL])
        assert same != keep


def test_seat_is_the_moving_average_of_every_step() -> None:
    weights = {"w": np.zeros(2, np.float32)}
    average = MovingAverage(lambda: weights, None, 0)
    want = np.zeros(2)
    for step, value in enumerate((1.0, 5.0, -2.0, 4.0)):
        weights["w"][:] = value
        average.update()
        keep = min(0.999, (step + 1) / (step + 10))
        want = keep * want + (1 - keep) * value
    np.testing.assert_allclose(average.arrays["w"], want, rtol=1e-6)
    workload = build(experiment({"seat": True}))
    record = initial(workload)
    first = act(workload, "train", {MODEL: record})
    second = act(workload, "train", {MODEL: Record({MODEL: first.groups[MODEL]})}, round=2, state=first.state)
    assert first.state.info["steps"] == 7 and second.state.info["steps"] == 14  # 200 images in batches of 32
    assert set(second.groups) == {MODEL, "seat"}
    assert arrays_sha256(second.groups["seat"]) != arrays_sha256(second.groups[MODEL])


def batches(count: int) -> list[torch.Tensor]:
    torch.manual_seed(9)
    return [2.0 + torch.randn(16, 1, 8, 8) for _ in range(count)]


def convolved(model: nn.Sequential, parts: list[torch.Tensor]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Each batch's mean and unbiased variance of every channel before normalisation, (batches, channels)."""
    with torch.no_grad():
        values = [model[0](part).movedim(1, 0).flatten(1).double().numpy() for part in parts]
    return np.array([each.mean(1) for each in values]), np.array([each.var(1, ddof=1) for each in values])


def test_cumulative_statistics_are_the_mean_over_batches() -> None:
    model, parts = network(), batches(10)
    means, variances = convolved(model, parts)
    found = reestimate(model, parts, "cumulative")
    np.testing.assert_allclose(found["1.running_mean"], means.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found["1.running_var"], variances.mean(0), rtol=1e-4)
    assert model[1].momentum == 0.1 and model.training


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
def test_released_statistics_are_the_median_of_running_values_from_0_and_1(momentum: float | None) -> None:
    model, parts = network(), batches(7)
    layer = model[1]
    assert isinstance(layer, nn.BatchNorm2d)
    layer.momentum = momentum
    means, variances = convolved(model, parts)
    running = [np.zeros(4), np.ones(4)]
    seen: list[list[Any]] = [[], []]
    for count, values in enumerate(zip(means, variances, strict=True), 1):
        share = 1 / count if momentum is None else momentum  # the layer's own; without one the mean so far
        for index in (0, 1):
            running[index] = (1 - share) * running[index] + share * values[index]
            seen[index].append(running[index])
    found = reestimate(model, parts, "released")
    np.testing.assert_allclose(found["1.running_mean"], np.median(seen[0], axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["1.running_var"], np.median(seen[1], axis=0), rtol=1e-4)
    assert model[1].momentum == momentum
    if momentum == 0.1:  # with few batches it is nowhere near the truth
        assert np.abs(found["1.running_mean"].numpy() / means.mean(0)).max() < 0.6


def test_the_released_rule_is_refused_before_the_run_where_batches_are_few() -> None:
    with pytest.raises(ConfigError, match=r"at least 132 batches.*here are 7.*cumulative"):
        build(experiment(strategy={"batch_norm": "released"}))
    # 0.9 ** (n / 2) < 1e-3
    assert 0.9 ** (LEAST_BATCHES / 2) < 1e-3 < 0.9 ** ((LEAST_BATCHES - 2) / 2)
    small = {"train_examples": 150, "validation": 0.0, "training": {"batch_size": 1, "momentum": 0.9}}
    build(experiment({**small}, strategy={"batch_norm": "released"}))


def test_a_table_with_auto_attack_is_refused_before_the_run_only_where_the_strategy_will_ask_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)  # as on a machine without the package
    measured = {"measure": {"table": ["fgsm", "autoattack"]}}
    build(experiment(measured))
    build(experiment(measured, {"compare": ["last"]}))
    with pytest.raises(UsageError, match="attacks"):
        build(experiment(measured, {"compare": ["last"], "table": True}))


def test_statistics_measures_and_attacks_leave_a_client_as_it_was() -> None:
    workload = build(experiment())
    record = initial(workload)
    kept = act(workload, "train", {MODEL: record}).state
    found = act(
        workload, "statistics", {"a": record, "b": record}, inputs=("a", "b"), knobs={"rule": "cumulative"}, state=kept
    )
    assert found.state is None and found.num_examples == 200, "what is stored for the client stays"
    assert set(found.groups) == {"a", "b"}
    assert arrays_sha256(found.groups["a"]) == arrays_sha256(found.groups["b"])
    assert set(found.groups["a"]) == {name for name in record.groups[MODEL] if "running_" in name}
    measured = act(workload, "robustness", {"a": record}, inputs=("a",), knobs={"part": 0, "parts": 1}, state=kept)
    assert measured.num_examples == 0 and measured.state is None  # nothing new to keep: the old state stays


def test_parts_of_the_images_add_up() -> None:
    workload = build(experiment())
    record = initial(workload)

    def counts(part: int, parts: int) -> dict[str, Any]:
        knobs = {"part": part, "parts": parts}
        found: dict[str, Any] = act(workload, "robustness", {"a": record}, inputs=("a",), knobs=knobs).info["test"]
        return found

    whole, pieces = counts(0, 1), [counts(part, 3) for part in range(3)]
    assert whole["examples"] == 100 == sum(piece["examples"] for piece in pieces)
    assert whole["clean"] == sum(piece["clean"] for piece in pieces)


def test_crops_shift_whole_images_and_flips_mirror_them() -> None:
    torch.manual_seed(2)
    x = torch.rand(40, 2, 8, 8)
    assert augmented(x, "none") is x
    for kind in ("crop", "crop_flip"):
        found, mirrored = augmented(x, kind), 0
        for image, cut in zip(F.pad(x, (4, 4, 4, 4)), found, strict=True):
            windows = image.unfold(1, 8, 1).unfold(2, 8, 1)  # (2, 9, 9, 8, 8)
            plain = (windows == cut[:, None, None]).all(-1).all(-1).all(0).any()
            turned = (windows.flip(4) == cut[:, None, None]).all(-1).all(-1).all(0).any()
            assert plain or turned
            mirrored += int(turned and not plain)
        assert (10 < mirrored < 30) if kind == "crop_flip" else mirrored == 0


def test_faulty_clients_send_corrupted_weights_and_the_others_do_not() -> None:
    partition = {"partition": {"scheme": "iid"}}
    clean = build(experiment({**partition}, clients=4))
    spoilt = build(experiment({**partition, "faulty_clients": 0.5}, clients=4))
    record = initial(clean)
    same = []
    for client in range(4):
        pair = [act(each, "train", {MODEL: record}, client=client).groups[MODEL] for each in (clean, spoilt)]
        same.append(arrays_sha256(pair[0]) == arrays_sha256(pair[1]))
        np.testing.assert_array_equal(pair[0]["1.running_var"], pair[1]["1.running_var"])
    assert same == [False, False, True, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": [[0.5, 1.0]]}, r"workload\.schedule: expected rising shares"),
        ({"schedule": [[0.0, 0.0]]}, r"workload\.schedule: factors must be above 0"),
        ({"training": {"optimizer": "adamw"}}, r"keep_momentum = false"),
        ({"defense": {"awp_warmup": 3}}, r"has no effect while awp_gamma is 0"),
        ({"defense": {"name": "at", "weight": 3.0}}, r"'at' has no second term"),
        ({"attack": {"epsilon": 1.5}}, r"workload\.attack\.epsilon"),
        ({"measure": {"table": ["pgd-7"]}}, r"workload\.measure\.table"),
    ],
)
def test_what_is_set_wrongly_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(settings)


def test_more_training_images_than_there_are_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"workload\.train_examples: 1438 for training and 144"):
        build(experiment({"train_examples": 1438}))
