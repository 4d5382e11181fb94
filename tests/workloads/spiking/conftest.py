"""Fixtures of the spiking tests: workloads from a few settings, and one process-wide limit on threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedloom.core.config import Experiment
from fedloom.workloads.spiking_classification.workload import SpikingClassification, build_workload

Build = Callable[..., SpikingClassification]


@pytest.fixture(scope="session")
def build() -> Build:
    """Makes a workload on digits; `clients` and `seed` belong to the experiment, all else to the workload."""

    def make(clients: int = 1, seed: int = 1, **workload: Any) -> SpikingClassification:
        settings = {"name": "spiking_classification", "partition": {"scheme": "iid"}, **workload}
        experiment = Experiment.parse(
            {"rounds": 1, "clients": clients, "seed": seed, "strategy": "fedavg", "workload": settings}
        )
        config: Any = experiment.workload
        return build_workload(config, experiment)

    return make
