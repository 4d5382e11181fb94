"""Shared by all tests: a tiny experiment, and where its workload lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedloom.core.config import Experiment

LINEAR = Path(__file__).parent / "support" / "linear.py"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a folder of its own, with a cache and identities of its own, and without telemetry."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture
def linear() -> Callable[..., Experiment]:
    """Makes the small linear-regression experiment; keyword arguments replace settings, `workload` is merged."""

    def make(**values: Any) -> Experiment:
        workload = {"name": str(LINEAR), **values.pop("workload", {})}
        base = {"rounds": 4, "clients": 12, "cohort": 6, "strategy": "fedavg", "runtime": {"name": "inline"}}
        return Experiment.parse({**base, "workload": workload, **values})

    return make
