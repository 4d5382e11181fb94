"""Workloads whose data is always there keep to what every workload does."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedloom.core.records import Info
from fedloom.testing.workload import WorkloadConformance

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL: Info = {"data": {"source": "digits"}, "model": {"name": "mlp", "hidden": [8]}, "training": {"max_steps": 3}}
CASES: dict[str, Info] = {
    "fedloom.testing.linear": {},
    str(EXAMPLES / "linear_regression.py"): {},
    "image_classification": SMALL,
    "spiking_classification": {**SMALL, "time_steps": 4, "training": {}},
}


@pytest.mark.parametrize("name", CASES, ids=lambda name: Path(name).stem)
class TestWorkloads(WorkloadConformance):
    @pytest.fixture(autouse=True)
    def _chosen(self, name: str) -> None:
        self.name, self.settings = name, CASES[name]
