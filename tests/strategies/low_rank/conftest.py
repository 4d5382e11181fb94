"""Small whole runs: an MLP on the digits, adapters on its two hidden layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedloom import api
from fedloom.api import RunResult
from fedloom.core.config import Experiment

SHAPES = {"1": (24, 64), "3": (16, 24)}
"""(o, i) of the layers with adapters."""
HEAD = 10 * 16 + 10
FULL = 24 * 64 + 24 + 16 * 24 + 16 + HEAD
WIDTH = sum(out + in_ for out, in_ in SHAPES.values())

Make = Callable[..., Experiment]


def experiment(strategy: str, *, settings: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    """A run of `strategy` with `settings`, and with `changes` to the experiment."""
    own = {} if strategy in ("fedavg", "fedprox") else {"targets": ["1", "3"]}
    values: dict[str, Any] = {
        "rounds": 6,
        "clients": 4,
        "cohort": 2,
        "strategy": {"name": strategy, **own, **(settings or {})},
        "workload": {
            "name": "image_classification",
            "data": {"source": "digits"},
            "model": {"name": "mlp", "hidden": [24, 16]},
            "training": {"learning_rate": 0.1, "max_steps": 3},
        },
        "runtime": {"name": "inline"},
        "evaluation": {"every": 0},
    }
    return Experiment.parse({**values, **changes})


@pytest.fixture
def run() -> Callable[..., RunResult]:
    """Run an experiment made by `experiment` and keep nothing on disk."""

    def do(strategy: str, **arguments: Any) -> RunResult:
        return api.run(experiment(strategy, **arguments), keep=False)

    return do
