"""Flower's own simulation engine (its server loop, its Ray back end) on a benchmark's work."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from benchmarks.flower_app import SameCohorts, client_app
from benchmarks.meter import Clock
from benchmarks.work import WORKS, Task, save_result, state_arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    work = WORKS[options.work]
    server_app = ServerApp()

    @server_app.main()  # type: ignore[untyped-decorator]  # flwr is read without its types
    def serve(grid: Grid, context: Context) -> None:
        task, clock = Task(work), Clock(options.rounds)
        model = task.initial_model()
        while len(list(grid.get_node_ids())) < work.clients:
            time.sleep(0.05)
        strategy = SameCohorts(task, clock)
        result = strategy.start(
            grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=options.rounds, timeout=600
        )
        model.load_state_dict(result.arrays.to_torch_state_dict())
        save_result(options.out, clock.result() | {"accuracy": task.accuracy(model)}, state_arrays(model))

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=work.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": options.processes, "include_dashboard": False},
        },
    )


if __name__ == "__main__":
    main()
