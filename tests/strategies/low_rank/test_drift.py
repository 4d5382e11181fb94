"""How far clients drift apart in rounds with whole models."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fedloom.core import registry
from fedloom.core.accumulators import RunningMean
from fedloom.core.config import Experiment
from fedloom.core.history import RoundRecord, Timing, Traffic
from fedloom.core.records import MODEL, RoundContext, Update
from fedloom.core.seeds import generator
from fedloom.strategies._low_rank.budgets import drift
from fedloom.strategies._low_rank.rule import build_rule

TINY = {
    "rounds": 4,
    "clients": 8,
    "cohort": 3,
    "runtime": {"name": "inline"},
    "workload": {
        "name": "image_classification",
        "partition": {"scheme": "iid"},
        "training": {"max_steps": 2},
        "model": {"name": "vit", "vit": {"patch": 4, "width": 8, "depth": 1, "heads": 2, "mlp": 8}},
    },
}


def test_drift_is_the_spread_of_the_clients_models() -> None:
    made = Experiment.parse({**TINY, "strategy": {"name": "sa_fedlora", "rank_max": 2, "rank_min": 1}})
    workload = registry.part("workloads", "image_classification", "workload").build_workload(made.workload, made)
    strategy = registry.part("strategies", "sa_fedlora", "strategy").build_strategy(made.strategy, made)
    state = strategy.init(workload.init(generator(1, "init")))
    context = RoundContext(round=1, cohort=(0, 3, 5), population=8, rounds=4, seed=1)
    exchange = strategy.plan(state, context)
    total, models, sizes, distances = RunningMean(), [], [], []
    for job in exchange.jobs:
        rule, shard, rng = build_rule(), workload.shard(job.client), generator(1, "train", job.client)
        update = workload.train(replace(job, knobs=exchange.knobs), exchange.inputs, shard, rule, rng)
        update = rule.outgoing(update, exchange.knobs)
        total.add(update, update.num_examples, job.client)
        models.append(np.concatenate([array.ravel().astype(np.float64) for array in update.groups[MODEL].values()]))
        sizes.append(update.num_examples)
        distances.append(update.metrics["distance_squared"])
    reported = strategy.finish(state, total, context).reported
    shares = np.array(sizes) / sum(sizes)
    mean = shares @ np.array(models)
    expected = math.sqrt(sum(p * ((w - mean) ** 2).sum() for p, w in zip(shares, models, strict=True)))
    squared = sum(each.sum for each in distances) / sum(each.weight for each in distances)
    record = RoundRecord(
        round=1, cohort=[0], num_examples=1, metrics={"distance_squared": squared}, traffic=Traffic(),
        timing=Timing(), info=dict(reported),
    )  # fmt: skip
    assert drift(record) == pytest.approx(expected, rel=1e-4)


def test_a_round_that_does_not_tell_has_no_drift() -> None:
    record = RoundRecord(
        round=1, cohort=[0], num_examples=1, metrics={"distance_squared": 2.0}, traffic=Traffic(), timing=Timing()
    )
    assert math.isnan(drift(record))
    assert drift(record.model_copy(update={"info": {"step_squared": 0.56}})) == pytest.approx(1.2)


def test_only_adapter_rounds_have_a_step_size_of_their_own() -> None:
    strategy = {"name": "sa_fedlora", "rank_max": 2, "rank_min": 1, "initiating_rounds": 1, "rate_factor": 3.0}
    made = Experiment.parse({**TINY, "strategy": strategy})
    workload = registry.part("workloads", "image_classification", "workload").build_workload(made.workload, made)
    server = registry.part("strategies", "sa_fedlora", "strategy").build_strategy(made.strategy, made)
    state, total = server.init(workload.init(generator(1, "init"))), RunningMean()
    first, second = (RoundContext(round=n, cohort=(0,), population=8, rounds=4, seed=1) for n in (1, 2))
    exchange = server.plan(state, first)
    assert "rate_factor" not in exchange.knobs and exchange.knobs["tell_distance"]
    total.add(Update(num_examples=1, groups=exchange.inputs[MODEL].groups), 1, 0)
    exchange = server.plan(server.finish(state, total, first), second)
    assert exchange.knobs["rate_factor"] == 3.0 and "tell_distance" not in exchange.knobs
