"""The example of use: clients that left are replayed from samples of the global model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedloom import api
from fedloom.core import registry
from fedloom.core.records import MODEL, Job
from fedloom.core.seeds import generator

EXAMPLE = Path(__file__).parents[3] / "examples" / "generative-replay.toml"
SMALL = ["workload.train_examples=100", "rounds=2", "workload.leave_after=1", "workload.confidence=0.0"]


def test_who_stays_trains_on_samples_and_who_left_on_nothing() -> None:
    made = api.load(EXAMPLE, SMALL)
    workload = registry.part("workloads", made.workload.name, "workload").build_workload(made.workload, made)
    inputs = {MODEL: workload.init(generator(1, "init"))}

    def trained(client: int, round: int) -> int:
        given = workload.shard(client)
        update = workload.train(Job(round=round, client=client), inputs, given, None, generator(1, "train", client))
        return int(update.num_examples)

    assert [trained(client, 1) for client in (0, 1)] == [20, 20]
    assert [trained(client, 2) for client in (0, 1)] == [0, 40]
    assert trained(1, 1) == 20, "samples of another job are left"
    result = api.run(made.override(["runtime.name=inline"]), keep=False)
    assert np.isfinite(result.summary.metrics["accuracy"])
