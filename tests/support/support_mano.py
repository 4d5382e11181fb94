"""A small estimation on the digits, for every test of the workload."""

from typing import Any

from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.core.records import MODEL, Arrays, Job, Record
from fedloom.core.seeds import generator

Settings = dict[str, Any]


def experiment(workload: Settings | None = None, strategy: Settings | None = None, **settings: Any) -> Experiment:
    """An experiment of one client; `workload` and other settings are laid over it."""
    base: Settings = {
        "name": "mano",
        "data": {"source": "digits"},
        "train_examples": 400,
        "model": {"name": "strided", "width": 0.5},
        "training": {"learning_rate": 0.05, "momentum": 0.9, "batch_size": 32},
        "suite": {"banks": ["mild"], "severities": [3], "images": 60},
    }
    return Experiment.parse(
        {
            "rounds": 2,
            "runtime": {"name": "inline"},
            "strategy": {"name": "mano", "parts": 3, **(strategy or {})},
            "workload": {**base, **(workload or {})},
            **settings,
        }
    )


def build(made: Experiment) -> Any:
    """The experiment's workload."""
    return registry.part("workloads", "mano", "workload").build_workload(made.workload, made)


def scripted(made: Experiment) -> tuple[dict[str, Record], list[dict[str, Any]]]:
    """The paper's procedure with no platform: train two models, then score every set. Inputs of the scoring, lines."""
    workload, seed = build(made), made.seed
    start = workload.init(generator(seed, "init", 0, 0, 0))
    groups: dict[str, Arrays] = {
        name: {key: array.copy() for key, array in arrays.items()} for name, arrays in start.groups.items()
    }
    inputs = {"initial": Record({MODEL: groups[MODEL]})}
    for epoch in range(1, made.rounds_known("this loop") + 1):
        models = {name: Record({name: arrays}) for name, arrays in groups.items()}
        rng = generator(seed, "train", epoch, 0, 0)
        update = workload.train(Job(round=epoch, client=0), models, workload.shard(0), None, rng)
        groups = {name: {key: array.copy() for key, array in arrays.items()} for name, arrays in update.groups.items()}
    inputs |= {name: Record({name: arrays}) for name, arrays in groups.items()}
    return inputs, estimated(workload, inputs, parts=1)


def estimated(workload: Any, inputs: dict[str, Record], *, parts: int) -> list[dict[str, Any]]:
    """Every set's line, the parts' one after the other."""
    lines = []
    for part in range(parts):
        job = Job(round=1, client=part, kind="estimate", knobs={"part": part, "parts": parts})
        lines += workload.actions["estimate"](job, inputs, None, generator(1, "estimate", part)).info["sets"]
    return lines
