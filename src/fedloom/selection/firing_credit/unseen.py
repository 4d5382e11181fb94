"""Tests credits without a federation: do they identify clients whose classes the global model has never seen?

A model is trained on the data of some classes only. Then every client trains from it once, and its credit (and rival
signals) is compared with whether it has classes the model has not seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedloom.core.config import Experiment
from fedloom.core.errors import UsageError
from fedloom.core.plugins import AnyWorkload, build_workload
from fedloom.core.protocols import Shard
from fedloom.core.ranks import separation
from fedloom.core.records import MODEL, Job, Record
from fedloom.core.seeds import generator
from fedloom.selection._choosing.steps import changes
from fedloom.selection.firing_credit.measure import build_measure


def separations(experiment: Experiment, *, seen: int, passes: int, share: float) -> dict[str, float]:
    """Measure how well each signal separates clients that have unseen classes from the others (`ranks.separation`).

    Args:
        experiment: whose workload, partition and seed are used; its strategy and selection are not.
        seen: classes the model is trained on, drawn by seed.
        passes: local trainings' worth of training on all data of the seen classes.
        share: fraction of unseen classes above which a client should be identified.

    Returns:
        `unseen_auc` (credit of the output layer), `unseen_auc_all` (of all spiking layers), `unseen_auc_norm` (norm of
        the update), `unseen_auc_loss` (local loss of the model before training); NaN if all clients are alike.

    Raises:
        UsageError: the workload declares no label counts.
    """
    workload = _built(experiment)
    counts = np.asarray(workload.describe().label_counts, np.float64)
    if counts.ndim != 2:
        raise UsageError(
            f"study.tests.unseen: workload {experiment.workload.name!r} does not declare its label counts; use a "
            "classification workload, or remove the table `tests.unseen`"
        )
    classes = counts.shape[1]
    known = sorted(generator(experiment.seed, "unseen", "classes").permutation(classes)[:seen].tolist())
    model = _trained(experiment, workload, known, classes, passes)
    held = 1.0 - counts[:, known].sum(axis=1) / np.maximum(counts.sum(axis=1), 1.0)
    positive = held > share
    signals = [_signals(workload, model, experiment.seed, client) for client in range(experiment.num_clients)]
    return {name: separation([each[name] for each in signals], positive) for name in signals[0]}


def _trained(experiment: Experiment, workload: AnyWorkload, seen: list[int], classes: int, passes: int) -> Record:
    """Train the initial model on everything there is of the seen classes."""
    values = experiment.to_dict()
    by_class = {**values["workload"], "partition": {"scheme": "pathological", "classes_per_client": 1}}
    pure = _built(Experiment.parse({**values, "clients": classes, "cohort": 1, "strategy": "fedavg",
                                    "selection": "uniform", "workload": by_class}))  # fmt: skip
    counts = np.asarray(pure.describe().label_counts, np.float64)
    shards: list[Any] = [pure.shard(client) for client in range(classes) if int(counts[client].argmax()) in seen]
    everything: Shard = dataclasses.replace(shards[0], rows=np.concatenate([shard.rows for shard in shards]))
    model = workload.init(generator(experiment.seed, "init"))
    for number in range(1, passes + 1):
        rng = generator(experiment.seed, "unseen", "pretrain", number)
        update = pure.train(Job(round=number, client=0), {MODEL: model}, everything, None, rng)
        model = Record({MODEL: {name: array.copy() for name, array in update.groups[MODEL].items()}})
    return model


def _signals(workload: AnyWorkload, model: Record, seed: int, client: int) -> Mapping[str, float]:
    """Return the signals of a client's training from the model."""
    shard = workload.shard(client)
    loss = workload.evaluate({MODEL: model}, shard)["loss"].value
    rng = generator(seed, "unseen", "train", client)
    update = workload.train(Job(round=1, client=client), {MODEL: model}, shard, None, rng)
    trained = dataclasses.replace(
        update, groups={MODEL: {name: array.copy() for name, array in update.groups[MODEL].items()}}
    )

    measure = build_measure()

    def credit(layers: str) -> float:
        knobs = {"norm": "l1", "layers": layers, "gain": False}
        noise = generator(seed, "unseen", "measure", client)
        return float(measure(workload, model, trained, shard, noise, knobs)["credit"])

    squares = sum(float((change**2).sum()) for _, change in changes(model, trained, "unseen"))
    return {
        "unseen_auc": credit("output"),
        "unseen_auc_all": credit("all"),
        "unseen_auc_norm": math.sqrt(squares),
        "unseen_auc_loss": loss,
    }


def _built(experiment: Experiment) -> AnyWorkload:
    return build_workload(experiment.workload, experiment)
