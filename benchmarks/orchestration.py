"""What a round costs when clients cost nothing: 50 clients that return a 10 kB model as it came."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedloom.api import run
from fedloom.core.config import Experiment
from fedloom.core.events import Event, RoundFinished

COHORT = 50
_WARM_UP = 5
"""Rounds not counted: connections, caches, the allocator."""


class DriverClock:
    """A sink: wall clock and this process's own CPU time at the end of every round."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def write(self, event: Event) -> None:
        """Take an event of the run."""
        if isinstance(event, RoundFinished):
            self.wall.append(time.perf_counter())
            self.cpu.append(time.process_time())

    def close(self) -> None:
        """Nothing to flush."""

    def per_round(self) -> tuple[float, float]:
        """Median milliseconds of wall clock, mean milliseconds of CPU."""
        wall, cpu = self.wall[_WARM_UP:], self.cpu[_WARM_UP:]
        laps = [after - before for before, after in itertools.pairwise(wall)]
        return statistics.median(laps) * 1e3, (cpu[-1] - cpu[0]) / (len(cpu) - 1) * 1e3


def measure(runtime: str, clients: int, rounds: int) -> dict[str, Any]:
    """One run; wall and driver CPU per round."""
    settings: dict[str, Any] = {"name": runtime} | ({} if runtime == "inline" else {"workers": 2})
    experiment = Experiment.parse(
        {
            "name": "bench-orchestration",
            "rounds": rounds + _WARM_UP,
            "clients": clients,
            "cohort": COHORT,
            "strategy": "fedavg",
            "workload": {"name": str(Path(__file__).parent / "noop_workload.py"), "kilobytes": 10},
            "evaluation": {"every": 0},
            "checkpoint": {"every": rounds + _WARM_UP},
            "runtime": settings,
        }
    )
    clock = DriverClock()
    with tempfile.TemporaryDirectory() as folder:
        run(experiment, out=Path(folder) / "run", sinks=(clock,))
    wall_ms, cpu_ms = clock.per_round()
    return {
        "runtime": runtime,
        "clients": clients,
        "cohort": COHORT,
        "rounds": rounds,
        "wall ms/round": wall_ms,
        "driver CPU ms/round": cpu_ms,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=("inline", "process", "ray"), required=True)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    result = measure(options.runtime, options.clients, options.rounds)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
