"""Flower's own simulation engine on the rounds of `benchmarks.adapters`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import peft
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from benchmarks.adapters import CLIENTS
from benchmarks.adapters_app import SameCohorts, client_app, loaded
from benchmarks.meter import Clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    server_app = ServerApp()

    @server_app.main()  # type: ignore[untyped-decorator]  # flwr is read without its types
    def serve(grid: Grid, context: Context) -> None:
        clock = Clock(options.rounds)
        _, model = loaded()
        initial = ArrayRecord(peft.get_peft_model_state_dict(model))
        while len(list(grid.get_node_ids())) < CLIENTS:
            time.sleep(0.05)
        SameCohorts(clock).start(grid=grid, initial_arrays=initial, num_rounds=options.rounds, timeout=600)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "result.json").write_text(json.dumps(clock.result()), encoding="utf-8")

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "include_dashboard": False},
        },
    )


if __name__ == "__main__":
    main()
