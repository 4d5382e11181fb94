"""Schedules, steps, weights of classes, smoothing, early stopping, bfloat16, augmentation, minibatches of one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support_rounds import build
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.records import MODEL, Array, Job, Record, Update, arrays_sha256
from fedloom.core.seeds import generator
from fedloom.testing.workload import Spy
from fedloom.workloads._torch.scope import exact
from fedloom.workloads._torch.settings import EarlyStopping, ScheduleSettings, TrainingSettings
from fedloom.workloads._torch.stopping import Stopper
from fedloom.workloads._torch.trainer import LocalTraining, Trainer
from fedloom.workloads._vision.augment import augment_images
from fedloom.workloads._vision.augment_settings import AugmentSettings

CPU = torch.device("cpu")
RNG = np.random.Generator(np.random.PCG64(2))
X = torch.from_numpy(RNG.standard_normal((40, 3)).astype(np.float32))
Y = torch.from_numpy(RNG.integers(0, 3, 40))


def schedule(**values: Any) -> ScheduleSettings:
    return ScheduleSettings.model_validate(values)


@pytest.mark.parametrize(
    ("settings", "places", "want"),
    [
        ({}, 3, [1, 1, 1]),
        ({"warmup": 3}, 5, [1 / 4, 2 / 4, 3 / 4, 1, 1]),
        ({"shape": "linear"}, 4, [1, 3 / 4, 2 / 4, 1 / 4]),
        ({"shape": "linear", "final": 0.5, "warmup": 2}, 4, [1 / 3, 2 / 3, 1, 3 / 4]),
        ({"shape": "cosine"}, 4, [(1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]),
        ({"shape": "cosine", "final": 0.2}, 2, [1, 0.2 + 0.8 / 2]),
        ({"shape": "drops", "drop_at": [0.5, 0.75]}, 4, [1, 1, 0.1, 0.01]),
        ({"shape": "drops", "drop_at": [0.25], "drop": 0.5, "warmup": 1}, 4, [0.5, 0.5, 0.5, 0.5]),
        ({"shape": "linear", "warmup": 9}, 3, [1 / 10, 2 / 10, 3 / 10]),
    ],
)
def test_a_schedule_is_its_formula(settings: dict[str, Any], places: int, want: list[float]) -> None:
    made = schedule(**settings)
    assert [made.factor(place, places) for place in range(places)] == pytest.approx(want)


@pytest.mark.parametrize(
    "values",
    [
        {"round_schedule": {"shape": "drops"}},
        {"round_schedule": {"drop_at": [0.5]}},
        {"step_schedule": {"shape": "drops", "drop_at": [0.6, 0.5]}},
        {"step_schedule": {"final": 0.1}},
        {"steps": 3, "epochs": 2},
        {"steps": 3, "max_steps": 2},
    ],
)
def test_a_setting_without_effect_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        experiment(training=values)


def linear() -> nn.Module:
    with exact(CPU, seed=3):
        return nn.Linear(3, 3)


def record_of(module: nn.Module) -> Record:
    return Record({MODEL: {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}})


def trained(
    settings: TrainingSettings, module: nn.Module | None = None, rows: Array | None = None, **more: Any
) -> Update:
    module = module or linear()
    start = record_of(module)

    def loss(batch: Tensor) -> Tensor:
        return nn.functional.cross_entropy(module(X[batch]), Y[batch])

    local = LocalTraining(rows=np.arange(40) if rows is None else rows, loss_of=loss, **more)
    return Trainer(module, settings, CPU).train({MODEL: start}, local, generator(9, "t"))


def test_steps_follow_their_schedule() -> None:
    update = trained(
        TrainingSettings(learning_rate=0.5, batch_size=8, step_schedule=schedule(shape="linear", warmup=1))
    )
    module, rng = linear(), generator(9, "t")
    rng.integers(2**63)
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    batches = torch.from_numpy(rng.permutation(40)).split(8)
    for factor, batch in zip([1 / 2, 1, 3 / 4, 2 / 4, 1 / 4], batches, strict=True):
        optimizer.param_groups[0]["lr"] = 0.5 * factor
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(X[batch]), Y[batch]).backward()
        optimizer.step()
    for name, tensor in module.state_dict().items():
        np.testing.assert_allclose(update.groups[MODEL][name], tensor.numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("rows", "want"), [(40, 7), (5, 7)])
def test_steps_are_as_many_on_every_client(rows: int, want: int) -> None:
    spy = Spy()
    trained(TrainingSettings(batch_size=8, steps=7), rows=np.arange(rows), rule=spy)
    assert len(spy.steps) == want


class TestBatchNormalisation:
    def make(self) -> nn.Module:
        with exact(CPU, seed=3):
            return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    def test_a_last_minibatch_of_one_is_left_out(self) -> None:
        update = trained(TrainingSettings(batch_size=13, learning_rate=0.1), self.make())  # 40 = 13 + 13 + 13 + 1
        module, rng = self.make(), generator(9, "t")
        rng.integers(2**63)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for batch in torch.from_numpy(rng.permutation(40)).split(13)[:3]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(X[batch]), Y[batch]).backward()
            optimizer.step()
        assert update.metrics["loss"].weight == 39 and update.num_examples == 40
        for name, tensor in module.state_dict().items():
            np.testing.assert_allclose(update.groups[MODEL][name], tensor.numpy(), rtol=1e-4, atol=1e-6)

    def test_what_it_can_normalise_is_trained_on(self) -> None:
        module = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.BatchNorm1d(1), nn.Flatten(), nn.Linear(3, 3))
        assert trained(TrainingSettings(batch_size=13), module).metrics["loss"].weight == 40

    @pytest.mark.parametrize(("rows", "size"), [(1, 8), (5, 1)])
    def test_a_client_without_two_examples_in_a_minibatch_fails_with_the_reason(self, rows: int, size: int) -> None:
        with pytest.raises(ConfigError, match=rf"needs two examples.*client has {rows}, batch_size is {size}"):
            trained(TrainingSettings(batch_size=size), self.make(), np.arange(rows))


class TestEarlyStopping:
    def test_the_best_weights_of_as_many_epochs_as_it_waits(self) -> None:
        weight, losses = torch.zeros(2), [3.0, 2.0, 2.5, 1.9, 2.0, 1.95, 0.0]
        stopper = Stopper(EarlyStopping(patience=2), [weight])
        stops = []
        for loss in losses:
            weight += 1
            stops.append(stopper.stops(loss))
            if stops[-1]:
                break
        assert stops == [False, False, False, False, False, True]
        stopper.restore()
        assert weight.tolist() == [4.0, 4.0]  # the loss 1.9 was epoch 4's

    def test_a_gain_must_be_large_enough(self) -> None:
        stopper = Stopper(EarlyStopping(patience=1, min_gain=0.5), [torch.zeros(1)])
        assert [stopper.stops(loss) for loss in (3.0, 2.4, 2.0)] == [False, False, True]

    def test_what_is_held_back_is_never_trained_on(self) -> None:
        training = {
            "epochs": 30,
            "batch_size": 8,
            "learning_rate": 2.0,
            "early_stopping": {"patience": 1, "share": 0.25},
        }
        workload, seen = build(experiment(training=training)), list[int]()
        shard = workload.shard(2)
        record = workload.init(generator(1, "init"))
        local = workload.local_training(workload.network, Job(round=1, client=2), shard, None)

        def watched(batch: Tensor) -> Tensor:
            seen.extend(batch.tolist())
            found: Tensor = local.loss_of(batch)
            return found

        update = workload.trainer.train({MODEL: record}, replace(local, loss_of=watched), generator(1, "t"))
        held = set(shard.rows.tolist()) - set(local.rows.tolist())
        assert len(held) == round(0.25 * len(shard.rows)) and not held & set(seen)
        assert len(seen) < 30 * len(local.rows)  # this step size is too large to gain for long
        assert update.num_examples == len(local.rows)
        later = workload.local_training(workload.network, Job(round=9, client=2), shard, None)
        assert later.rows.tolist() == local.rows.tolist()


def experiment(name: str = "image_classification", **workload: Any) -> Experiment:
    small = {"model": {"name": "mlp", "hidden": [8]}, "partition": {"scheme": "iid"}}
    base = {"rounds": 4, "clients": 20, "strategy": "fedavg", "workload": {"name": name, **small, **workload}}
    return Experiment.parse(base)


def update_of(made: Any, round: int = 1, client: int = 2) -> Update:
    job, record = Job(round=round, client=client), made.init(generator(1, "init"))
    update: Update = made.train(job, {MODEL: record}, made.shard(client), None, generator(1, "t"))
    return update


def test_rounds_follow_their_schedule() -> None:
    falls = build(experiment(training={"learning_rate": 0.2, "round_schedule": {"shape": "linear"}}))
    half = build(experiment(training={"learning_rate": 0.2 * 0.5}))
    digest = arrays_sha256(update_of(falls, round=3).groups[MODEL])  # round 3 of 4: half is over
    assert digest == arrays_sha256(update_of(half).groups[MODEL])
    open_ended = experiment(training={"round_schedule": {"shape": "linear"}}).override(["rounds='open'"])
    with pytest.raises(ConfigError, match=r"round_schedule.shape = 'linear' needs the number of rounds"):
        build(open_ended)


def test_the_training_loss_is_that_of_weighted_and_smoothed_classes() -> None:
    weights = (1.0, 2.0, 0.5, 1.0, 1.0, 1.0, 3.0, 1.0, 1.0, 0.0)
    for given in (weights, "balanced"):
        made = build(
            experiment(training={"max_steps": 1, "batch_size": 500, "class_weights": given, "label_smoothing": 0.1})
        )
        record, rows = made.init(generator(1, "init")), made.shard(2).rows
        arrays = record.groups[MODEL]
        x, y = made._images.x_train[rows].reshape(len(rows), -1).astype(np.float64), made._images.y_train[rows]
        hidden = np.maximum(x @ arrays["1.weight"].T + arrays["1.bias"], 0)
        logits = hidden @ arrays["3.weight"].T + arrays["3.bias"]
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        counts = np.bincount(y, minlength=10)
        w = (
            np.array(weights)
            if given != "balanced"
            else np.where(counts > 0, len(y) / ((counts > 0).sum() * np.maximum(counts, 1)), 0)
        )
        # torch's definition: targets are (1 - s) onehot + s / K, each class's term has the class's weight
        smooth = 0.9 * np.eye(10)[y] + 0.1 / 10
        want = -(smooth * w * log_p).sum() / w[y].sum()
        assert update_of(made).metrics["loss"].value == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "training", "words"),
    [
        ("image_classification", {"class_weights": [1.0, 2.0]}, "expected 10 numbers, one for each class, got 2"),
        ("spiking_classification", {"class_weights": "balanced"}, "class_weights: changes cross-entropy, but workload"),
        ("spiking_classification", {"label_smoothing": 0.1}, "label_smoothing: changes cross-entropy"),
    ],
)
def test_what_a_workload_cannot_follow_is_refused(name: str, training: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        update_of(build(experiment(name, training=training)))


def test_spiking_groups_train_one_by_one_where_steps_differ() -> None:
    assert build(experiment("spiking_classification")).program == "group"
    for workload in ({"training": {"steps": 3}}, {"augment": {"flip": True}}):
        made = build(experiment("spiking_classification", time_steps=2, **workload))
        assert made.program == "loop" and np.isfinite(update_of(made).metrics["loss"].value)


def test_bfloat16_computes_roughly_what_float32_does() -> None:
    exactly, roughly = (build(experiment(training={"max_steps": 3, "precision": name})) for name in ("float32", "bf16"))
    one, two = update_of(exactly), update_of(roughly)
    assert {array.dtype for array in two.groups[MODEL].values()} == {np.dtype(np.float32)}
    assert arrays_sha256(one.groups[MODEL]) != arrays_sha256(two.groups[MODEL])
    for name, array in one.groups[MODEL].items():
        np.testing.assert_allclose(two.groups[MODEL][name], array, atol=0.02)
    record, shard = exactly.init(generator(1, "init")), exactly.held_out(0, 1)
    logits = [made.logits({MODEL: record}, shard)[0] for made in (exactly, roughly)]
    assert logits[1].dtype == np.float32 and 0 < np.abs(logits[0] - logits[1]).max() < 0.05


class TestAugmentation:
    IMAGES = torch.arange(1.0, 1 + 200 * 2 * 4 * 5).reshape(200, 2, 4, 5)

    def change(self, seed: int = 1, **settings: Any) -> Tensor:
        with exact(CPU, seed=seed):
            return augment_images(self.IMAGES, AugmentSettings.model_validate(settings))

    def test_nothing_changes_nothing_and_a_seed_decides(self) -> None:
        assert self.change() is self.IMAGES
        every = {"flip": True, "crop": 1, "erase": 0.5}
        assert torch.equal(self.change(3, **every), self.change(3, **every))
        assert not torch.equal(self.change(3, **every), self.change(4, **every))

    def test_a_flip_mirrors_about_half(self) -> None:
        changed = self.change(flip=True)
        mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(changed, self.IMAGES, strict=True)]
        same = [torch.equal(new, old) for new, old in zip(changed, self.IMAGES, strict=True)]
        assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 70 < sum(mirrored) < 130

    def test_a_crop_is_a_window_of_the_padded_image(self) -> None:
        padded = nn.functional.pad(self.IMAGES, (2, 2, 2, 2))
        seen = set()
        for new, old in zip(self.change(crop=2), padded, strict=True):
            places = [(r, c) for r in range(5) for c in range(5) if torch.equal(new, old[:, r : r + 4, c : c + 5])]
            assert places
            seen.add(places[0])
        assert len(seen) > 15

    def test_erasing_sets_one_rectangle_to_zero(self) -> None:
        gone = (self.change(erase=0.5, erase_share=0.5) == 0).numpy()
        assert (gone[:, 0] == gone[:, 1]).all()  # in all channels alike
        share = gone[:, 0].mean((1, 2))
        assert 70 < (share > 0).sum() < 130 and share.max() <= 0.65  # sides are rounded to whole pixels
        for mask in gone[share > 0, 0]:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()

    def test_only_training_sees_it(self) -> None:
        plain, augmented = build(experiment()), build(experiment(augment={"crop": 1, "flip": True, "erase": 0.3}))
        assert arrays_sha256(update_of(plain).groups[MODEL]) != arrays_sha256(update_of(augmented).groups[MODEL])
        record = plain.init(generator(1, "init"))
        first, second = (made.evaluate({MODEL: record}, made.shard(1)) for made in (plain, augmented))
        assert first == second
