"""Rates seen in passing while training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedloom.core.records import MODEL, Job
from fedloom.core.seeds import generator
from fedloom.workloads._spiking.traces import RateTrace
from fedloom.workloads._torch.settings import TrainingSettings

Build = Any


def test_windows_are_the_first_and_the_last_epoch() -> None:
    """10 examples in batches of 4: three steps an epoch, of 4, 4 and 2 examples; two time steps."""
    trace = RateTrace.of(10, TrainingSettings(batch_size=4, epochs=3), time_steps=2)
    assert (trace.steps, trace.window) == (9, 3)
    for step in range(9):
        trace.add(step, [("output", np.array([step + 1, 0]))], [4, 4, 2][step % 3])
    rates = trace.rates()
    assert rates["first/output"].tolist() == [(1 + 2 + 3) / (10 * 2), 0.0]
    assert rates["last/output"].tolist() == [(7 + 8 + 9) / (10 * 2), 0.0]


@pytest.mark.parametrize(
    ("settings", "steps", "window"),
    [({"epochs": 1}, 3, 1), ({"epochs": 5, "max_steps": 4}, 4, 2), ({"epochs": 1, "max_steps": 1}, 1, 1)],
)
def test_short_trainings_compare_their_halves(settings: dict[str, int], steps: int, window: int) -> None:
    trace = RateTrace.of(10, TrainingSettings.model_validate({"batch_size": 4, **settings}), time_steps=2)
    assert (trace.steps, trace.window) == (steps, window)


@pytest.mark.parametrize("encoder", ["direct", "poisson"])
def test_the_group_traces_what_the_loop_traces(build: Build, encoder: str) -> None:
    work = build(
        12,
        partition={"scheme": "dirichlet", "alpha": 0.5},
        encoder={"name": encoder},
        model={"hidden": [12]},
        neuron={"threshold": 0.5},
        time_steps=3,
        training={"batch_size": 16, "epochs": 2},
    )
    inputs = {MODEL: work.init(generator(1, "model"))}
    jobs = [Job(round=1, client=client, knobs={"measurement": "training"}) for client in (3, 0, 7)]
    shards = [work.shard(job.client) for job in jobs]
    group = work.train_group(jobs, inputs, shards, [generator(1, "t", job.client) for job in jobs])
    for job, shard, together in zip(jobs, shards, group, strict=True):
        alone = work.train(job, inputs, shard, None, generator(1, "t", job.client))
        assert set(alone.traces) == {f"{part}/{name}" for part in ("first", "last") for name in ("hidden1", "output")}
        for name, rates in alone.traces.items():
            np.testing.assert_array_equal(together.traces[name], rates)
            assert rates.min() >= 0.0 and rates.max() <= 1.0
        assert not np.array_equal(alone.traces["first/hidden1"], alone.traces["last/hidden1"])
        # the mean over all steps, which training tells as a metric, lies between (two epochs: it is their mean)
        both = (alone.traces["first/hidden1"] + alone.traces["last/hidden1"]).mean() / 2
        np.testing.assert_allclose(alone.metrics["rate/hidden1"].value, both, rtol=1e-6)
    quiet = work.train_group([Job(round=1, client=3)], inputs, shards[:1], [generator(1, "t", 3)])[0]
    assert quiet.traces == {}
    for name, array in quiet.groups[MODEL].items():
        np.testing.assert_array_equal(array, group[0].groups[MODEL][name])
