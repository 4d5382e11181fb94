"""fedloom on a benchmark's work: its server, its agents, its wire, under the runtime asked for."""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.meter import Clock
from benchmarks.work import WORKS, Task, save_result
from fedloom.api import run
from fedloom.core.events import Event, RoundFinished, RoundStarted


class Laps:
    """A sink that tells the clock when rounds begin and end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def write(self, event: Event) -> None:
        """Take an event of the run."""
        if isinstance(event, RoundStarted) and event.round == 1:
            self._clock.begin()
        if isinstance(event, RoundFinished):
            self._clock.lap()

    def close(self) -> None:
        """Nothing to flush."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runtime", choices=("process", "ray", "inline"), default="process")
    parser.add_argument("--every-checkpoint", action="store_true", help="save after every round, as a run does")
    parser.add_argument("--one-group-each", action="store_true", help="the cohort in as many groups as processes")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    work = WORKS[options.work]
    settings: dict[str, Any] = {"runtime": {"name": options.runtime, "workers": options.processes}}
    if options.runtime == "inline":
        del settings["runtime"]["workers"]
    if options.every_checkpoint:
        settings["checkpoint"] = {"every": 1}
    if options.one_group_each:
        settings["round"] = {"group_size": math.ceil(work.cohort / options.processes)}
    clock = Clock(options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        result = run(work.experiment(options.rounds, **settings), out=Path(folder) / "run", sinks=(Laps(clock),))
        arrays = {name: np.array(array) for name, array in result.arrays.items()}
    torch.set_num_threads(1)
    task = Task(work)
    model = task.initial_model()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    phases = {
        name: sum(getattr(record.timing, name) for record in result.history[1:]) / (options.rounds - 1)
        for name in ("training_s", "waiting_s", "aggregation_s", "checkpoint_s")
    }
    save_result(options.out, clock.result() | {"accuracy": task.accuracy(model), "phases": phases}, arrays)


if __name__ == "__main__":
    main()
