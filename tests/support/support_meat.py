"""A small adversarial training on the digits, for every test of the workload."""

from typing import Any

from one_job import do_job

from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.core.records import MODEL, Arrays, Job, Record
from fedloom.core.seeds import generator

Settings = dict[str, Any]


def experiment(workload: Settings | None = None, strategy: Settings | None = None, **settings: Any) -> Experiment:
    """An experiment of one client; `workload` and other settings are laid over it."""
    base: Settings = {
        "name": "meat",
        "train_examples": 200,
        "attack": {"epsilon": 0.15, "step_size": 0.05, "steps": 3},
        "model": {"name": "strided", "width": 0.5},
        "training": {"learning_rate": 0.05, "momentum": 0.9, "batch_size": 32, "weight_decay": 0.001},
        "measure": {"examples": 100, "steps": 5, "table_examples": 20, "table": ["fgsm", "pgd-10"]},
    }
    return Experiment.parse(
        {
            "rounds": 4,
            "runtime": {"name": "inline"},
            "strategy": {"name": "meat", "start": 2, **(strategy or {})},
            "workload": {**base, **(workload or {})},
            **settings,
        }
    )


def build(made: Experiment) -> Any:
    """The experiment's workload."""
    return registry.part("workloads", "meat", "workload").build_workload(made.workload, made)


def initial(workload: Any, seed: int = 1) -> Record:
    """The initial model as round 0 makes it."""
    record = workload.init(generator(seed, "init", 0, 0, 0))
    return Record({MODEL: {name: array.copy() for name, array in record.groups[MODEL].items()}})


def act(workload: Any, kind: str, given: dict[str, Record], *, state: Record | None = None, **job: Any) -> Any:
    """One job's update, its arrays copied."""
    number, client, seed = job.pop("round", 1), job.pop("client", 0), job.pop("seed", 1)
    rng = generator(seed, kind, number, job.pop("exchange", 0), client)
    asked = Job(round=number, client=client, kind=kind, **job)
    update = do_job(workload, asked, given, state, rng)
    groups: dict[str, Arrays] = {
        group: {name: array.copy() for name, array in arrays.items()} for group, arrays in update.groups.items()
    }
    return type(update)(
        num_examples=update.num_examples, groups=groups, metrics=update.metrics, info=update.info, state=update.state
    )
