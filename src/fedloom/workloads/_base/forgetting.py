"""Training that makes a model forget a client: on random classes, on a share of the others' examples, or uphill.

A job of kind `forget` has one of these in its knobs:

    {"labels": "random"}   minimise the loss on the client's examples with classes drawn at random
    {"share": 0.1}         minimise the loss on this share of the client's examples
    {"radius": 2.5}        maximise the loss, within this L2 distance of the input `anchor` (of the model without one)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.errors import UnsupportedFeature
from fedloom.core.protocols import Inputs, LocalRule
from fedloom.core.records import Array, Info, Job, Update
from fedloom.core.seeds import generator
from fedloom.workloads._base.rows import RowData
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.trainer import LocalTraining, Trainer

FORGET = "forget"
"""Kind of the job."""


class Task(Protocol):
    """What is needed of a workload: a `RowTask` is one."""

    own_training: bool
    experiment: Experiment
    data: RowData
    trainer: Trainer
    device: torch.device

    @property
    def network(self) -> nn.Module:
        """Return the model that is trained."""

    def shard(self, client: int) -> RowShard:
        """Return a client's examples."""

    def local_training(self, model: nn.Module, job: Job, shard: RowShard, rule: LocalRule | None) -> LocalTraining:
        """Return a trainer's arguments for training on a shard."""

    def outputs(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        """Return the model's output for a minibatch."""

    def augment(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return a minibatch's inputs as they are trained on."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return a minibatch's mean loss."""


def forget(task: Task, job: Job, inputs: Inputs, rng: np.random.Generator) -> Update:
    """Train one client so that the model forgets, as the job's knobs say.

    Raises:
        UnsupportedFeature: the workload trains with a loss of its own, or has no classes to draw.
    """
    name = task.experiment.workload.name
    if task.own_training:
        raise UnsupportedFeature(
            f"workload {name!r} trains with a loss of its own, which can be neither turned round nor given other "
            "targets. Use method drop, negate_update or calibrate"
        )
    shard, knobs = task.shard(job.client), job.knobs
    local = task.local_training(task.network, job, shard, None)
    if not len(local.rows):
        return Update(num_examples=0)
    if "radius" in knobs:
        local = uphill(local, task.trainer, float(knobs["radius"]))
    elif knobs.get("labels") == "random":
        local = _on_random_classes(task, local, rng)
    else:
        local = replace(local, rows=share_of(local.rows, knobs, task.experiment.seed, job.client))
    return task.trainer.train(inputs, local, rng)


def share_of(rows: Array, knobs: Info, seed: int, client: int) -> Array:
    """Return the client's rows that keep the rest of the model, the same in every round: at least one, in order."""
    count = max(1, round(float(knobs["share"]) * len(rows)))
    chosen = generator(seed, "forget share", client).permutation(len(rows))[:count]
    return rows[np.sort(chosen)]


def _on_random_classes(task: Task, local: LocalTraining, rng: np.random.Generator) -> LocalTraining:
    """Return the training with each example's class drawn uniformly among all classes."""
    classes = task.data.num_labels
    if not classes:
        raise UnsupportedFeature(
            f"workload {task.experiment.workload.name!r} has no classes, so none can be drawn at random. Use method "
            "drop, gradient_ascent, negate_update or calibrate"
        )
    drawn = torch.zeros(len(task.data.train), dtype=torch.int64, device=task.device)
    rows = torch.from_numpy(local.rows).to(task.device)
    drawn[rows] = torch.from_numpy(rng.integers(classes, size=len(local.rows))).to(task.device)

    def loss_of(batch: Tensor) -> Tensor:
        inputs, targets = task.data.train.batch(batch)
        if targets.dim() != 1 or targets.is_floating_point():
            raise UnsupportedFeature("random classes need one class for each example. Use another method")
        return task.loss(task.outputs(task.network, *task.augment(inputs)), drawn.index_select(0, batch))

    return replace(local, loss_of=loss_of, validate=None)


def uphill(local: LocalTraining, trainer: Trainer, radius: float) -> LocalTraining:
    """Return the training that maximises the loss within a ball."""
    descend = local.loss_of
    return replace(local, loss_of=lambda batch: -descend(batch), validate=None, after_step=_projection(trainer, radius))


def _projection(trainer: Trainer, radius: float) -> Callable[[], None]:
    """Return what moves the trained tensors to the nearest point within `radius` of the anchor; L2, all together."""

    def project() -> None:
        with torch.no_grad():
            away = torch._foreach_sub(list(trainer.parameters), list(trainer.anchor))
            distance = math.sqrt(sum(float(each.double().square().sum()) for each in away))
            if distance > radius:
                for parameter, anchor, step in zip(trainer.parameters, trainer.anchor, away, strict=True):
                    parameter.copy_(anchor + step * (radius / distance))

    return project
