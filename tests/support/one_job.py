"""One job done by a workload alone, without a group or a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedloom.core.records import Job, Record, Update


def do_job(
    workload: Any, job: Job, inputs: Mapping[str, Record], state: Record | None, rng: np.random.Generator
) -> Update:
    """What the workload returns for a job: of its action by that name, else of its training."""
    kind = job.kind.split(".")[0]
    if kind != "train":
        action: Update = workload.actions[kind](job, inputs, state, rng)
        return action
    trained: Update = workload.train(job, inputs, workload.shard(job.client), None, rng, state)
    return trained
