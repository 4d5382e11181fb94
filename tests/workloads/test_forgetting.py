"""Training that makes a model forget, against PyTorch by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from fedloom import api
from fedloom.core.errors import UnsupportedFeature
from fedloom.core.plugins import build_workload
from fedloom.core.records import MODEL, Job, Record, Update
from fedloom.core.seeds import generator
from fedloom.workloads._base.forgetting import share_of
from fedloom.workloads._base.workload import TorchWorkload

SETTINGS = ["clients=5", "cohort=5", "workload.training.epochs=2"]


@pytest.fixture(scope="module")
def workload() -> TorchWorkload[Any]:
    experiment = api.load("digits-fedavg", SETTINGS)
    return cast("TorchWorkload[Any]", build_workload(experiment.workload, experiment))


def _forget(workload: TorchWorkload[Any], **knobs: object) -> tuple[dict[str, np.ndarray], Update]:
    initial = workload.init(generator(1, "init"))
    job = Job(round=1, client=3, kind="forget", knobs=knobs)
    update = workload.actions["forget"](job, {MODEL: initial}, None, generator(1, "job"))
    copied = {name: np.array(array) for name, array in update.groups[MODEL].items()}  # views of the workload's memory
    return dict(initial.groups[MODEL]), replace(update, groups={MODEL: copied})


def _distance(left: dict[str, np.ndarray], right: Update) -> float:
    return float(np.sqrt(sum(np.square(left[name] - right.groups[MODEL][name]).sum() for name in left)))


def test_a_share_is_fixed_and_sorted() -> None:
    rows = np.arange(100, 140)
    chosen = share_of(rows, {"share": 0.1}, seed=3, client=7)
    assert len(chosen) == 4 and set(chosen) <= set(rows) and list(chosen) == sorted(chosen)
    np.testing.assert_array_equal(chosen, share_of(rows, {"share": 0.1}, seed=3, client=7))
    assert len(share_of(rows[:3], {"share": 0.1}, seed=3, client=7)) == 1


def test_the_others_train_on_their_share(workload: TorchWorkload[Any]) -> None:
    count = len(workload.shard(3).rows)
    assert _forget(workload, share=0.5)[1].num_examples == round(0.5 * count)


def test_the_climb_stays_within_the_ball_and_raises_the_loss(workload: TorchWorkload[Any]) -> None:
    begun, small = _forget(workload, radius=0.05)
    assert _distance(begun, small) == pytest.approx(0.05, rel=1e-4), "the climb ends on the surface"
    free = _forget(workload, radius=1e9)[1]
    before, after = (
        workload.evaluate({MODEL: Record({MODEL: arrays})}, workload.shard(3))["loss"].value
        for arrays in (begun, free.groups[MODEL])
    )
    assert after > before and _distance(begun, free) > 0.05


def test_random_classes_teach_what_was_drawn(workload: TorchWorkload[Any]) -> None:
    rng = generator(1, "job")
    rows, classes = workload.shard(3).rows, workload.data.num_labels
    drawn = rng.integers(classes, size=len(rows))
    begun, update = _forget(workload, labels="random")
    inputs, _ = workload.data.train.batch(torch.from_numpy(rows))
    losses = []
    for arrays in (begun, dict(update.groups[MODEL])):
        with workload.evaluating({MODEL: Record({MODEL: {n: np.array(a) for n, a in arrays.items()}})}):
            outputs = workload.outputs(workload.network, *inputs)
            losses.append(float(torch.nn.functional.cross_entropy(outputs, torch.from_numpy(drawn))))
    assert losses[1] < losses[0], "the drawn classes are what it learns"


def test_a_workload_with_its_own_training_says_so() -> None:
    experiment = api.load("meat", ["clients=1"])
    meat = cast("TorchWorkload[Any]", build_workload(experiment.workload, experiment))
    with pytest.raises(UnsupportedFeature, match=r"workload 'meat' trains with a loss of its own.*drop, negate_update"):
        meat.actions["forget"](Job(round=1, client=0, kind="forget", knobs={"share": 0.1}), {}, None, generator(1, "j"))
