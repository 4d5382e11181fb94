"""A federation in ten lines: what the platform's loop does to a workload, without the platform."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fedloom.core import registry
from fedloom.core.accumulators import RunningMean
from fedloom.core.config import Experiment
from fedloom.core.records import MODEL, Job, Record, RoundContext, metric_values
from fedloom.core.seeds import generator


def build(experiment: Experiment) -> Any:
    """The experiment's workload."""
    part = registry.part("workloads", experiment.workload.name, "workload")
    return part.build_workload(experiment.workload, experiment)


def train(workload: Any, record: Record, client: int, *, seed: int = 1, rule: Any = None, **knobs: Any) -> Any:
    """One client's update, its arrays copied."""
    job = Job(round=1, client=client, knobs=knobs)
    rng = generator(seed, "train", 1, client)
    update = workload.train(job, {MODEL: record}, workload.shard(client), rule, rng)
    return replace(update, groups={MODEL: {name: np.array(array) for name, array in update.groups[MODEL].items()}})


def run_rounds(experiment: Experiment) -> dict[str, float]:
    """Metrics of the final model on the whole test set."""
    workload = build(experiment)
    part = registry.part("strategies", experiment.strategy.name, "strategy")
    strategy = part.build_strategy(experiment.strategy, experiment)
    state = strategy.init(workload.init(generator(experiment.seed, "init")))
    for number in range(1, experiment.rounds_known("this loop") + 1):
        rng = generator(experiment.seed, "selection", number)
        cohort = tuple(int(c) for c in rng.choice(experiment.num_clients, experiment.cohort_size, replace=False))
        context = RoundContext(
            round=number,
            cohort=cohort,
            population=experiment.num_clients,
            rounds=experiment.max_rounds,
            seed=experiment.seed,
        )
        exchange = strategy.plan(state, context)
        rule = registry.part("strategies", exchange.rules[0], "rule").build_rule() if exchange.rules else None
        total = RunningMean()
        for planned in exchange.jobs:
            job = replace(planned, knobs={**exchange.knobs, **planned.knobs})
            stream = generator(experiment.seed, "train", number, job.client)
            update = workload.train(job, exchange.inputs, workload.shard(job.client), rule, stream)
            total.add(update, update.num_examples, job.client)
        state = strategy.finish(state, total, context)
    return metric_values(workload.evaluate({MODEL: Record({MODEL: strategy.arrays(state)})}, workload.held_out(0, 1)))
