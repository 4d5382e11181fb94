"""What a user waits for: the first round of a small run, and rounds of two idle clients over gRPC."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedloom.core.config import Experiment
from fedloom.testing.fleet import run_on_fleet

_WORKLOAD = Path(__file__).parent / "noop_workload.py"

_FIRST_ROUND = """
import sys, time
from fedloom import api
from fedloom.core.events import RoundFinished

class First:
    def write(self, event):
        if isinstance(event, RoundFinished):
            print(time.process_time())

    def close(self):
        pass

api.run(api.load(sys.argv[1]), keep=False, sinks=[First()])
"""


def first_round(repeats: int = 5) -> dict[str, Any]:
    """Start Python, run one inline round of two idle clients; median seconds of CPU and of wall clock."""
    cpu, wall = [], []
    with tempfile.TemporaryDirectory(prefix="fedloom-bench-") as folder:
        file = Path(folder) / "one.toml"
        file.write_text(
            f'name = "one"\nrounds = 1\nclients = 2\ncohort = 2\nstrategy = "fedavg"\n'
            f'workload = "{_WORKLOAD}"\nevaluation = {{every = 0}}\nruntime.name = "inline"\n',
            encoding="utf-8",
        )
        for _ in range(repeats):
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", _FIRST_ROUND, str(file)], stdout=subprocess.PIPE, encoding="utf-8", check=True
            )
            wall.append(time.perf_counter() - began)
            cpu.append(float(done.stdout))
    return {"what": "program start to end of round 1", "CPU s": statistics.median(cpu), "s": statistics.median(wall)}


def deployed_rounds(rounds: int = 60) -> dict[str, Any]:
    """Run rounds of two idle clients on two agents over gRPC; median and 95th percentile of their seconds."""
    experiment = Experiment.parse(
        {
            "name": "latency",
            "rounds": rounds,
            "clients": 2,
            "cohort": 2,
            "strategy": "fedavg",
            "workload": str(_WORKLOAD),
            "evaluation": {"every": 0},
        }
    )
    outcome = run_on_fleet(experiment, shared_memory=False)
    if outcome.error is not None:
        raise outcome.error
    seconds = sorted(record.timing.total_s for record in outcome.history)
    return {
        "what": "round of two idle clients over gRPC",
        "s": statistics.median(seconds),
        "p95 s": seconds[int(0.95 * len(seconds))],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both, write them to `--out`/result.json or print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    text = json.dumps([first_round(), deployed_rounds()], indent=1)
    if options.out is None:
        print(text)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "result.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
