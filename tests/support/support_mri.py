"""Small MRI models and runs, for every test of the workload."""

from typing import Any

from fedloom.core.config import Experiment
from fedloom.workloads.mri_unlearning.config import Config
from fedloom.workloads.mri_unlearning.workload import MriUnlearning, build_workload

DATA: dict[str, Any] = {
    "source": "simulated",
    "retain": ["joint"],
    "forget": ["liver"],
    "size": 24,
    "slices": 6,
    "forget_slices": 4,
    "test_slices": 4,
    "coils": 2,
}
NET: dict[str, Any] = {"cascades": 1, "channels": 2, "pools": 1, "sensitivity_channels": 2, "sensitivity_pools": 1}
PLAIN: dict[str, Any] = {"oracle": False, "procedures": []}
"""One model, for plain reconstruction."""


def experiment(workload: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    """One client, a drawn joint and a liver; `workload` and other settings are laid over it."""
    base: dict[str, Any] = {"name": "mri_unlearning", "data": DATA, "net": NET, "unlearning": {"rounds": 1}}
    return Experiment.parse(
        {
            "rounds": 2,
            "clients": 1,
            "runtime": {"name": "inline"},
            "strategy": {"name": "fedavg"},
            "evaluation": {"every": 1, "parts": 1},
            **settings,
            "workload": {**base, **(workload or {})},
        }
    )


def build(made: Experiment) -> MriUnlearning:
    """Return the workload of an experiment."""
    return build_workload(Config.model_validate(made.workload.model_dump(exclude_unset=True)), made)
