"""Many sites in one run: what a site and round cost the server, in CPU and memory.

The server runs in its own process; each site is a member with a certificate, connected over mutual TLS from three
processes. Each is one client of a run of a small model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.idle import enroll
from benchmarks.report import micro_table
from fedloom.client.agent import Agent
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.client.setup import NodeSetup
from fedloom.core.config import Experiment
from fedloom.core.identity import Identity
from fedloom.server.access.membership import Membership, enroll_administrator, open_security
from fedloom.server.app import Server
from fedloom.server.rounds.session import run_session
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.testing.fleet import fleet_access

_MB = 1 << 20
_PROCESSES = 3


def experiment(sites: int, rounds: int, evaluated_every: int) -> Experiment:
    """Return federated averaging of a small linear model on all sites.

    Args:
        sites: clients.
        rounds: in which all of them train.
        evaluated_every: rounds between two evaluations at the sites, one more exchange each; 0 for none.
    """
    values = {"name": "sites", "rounds": rounds, "clients": "nodes", "strategy": "fedavg"}
    conduct = {"min_sites": sites}
    evaluation = {"every": evaluated_every}
    return Experiment.parse(
        {**values, "round": conduct, "evaluation": evaluation, "workload": {"name": "fedloom.testing.linear"}}
    )


def serve(state: Path, sites: int, rounds: int, evaluated_every: int) -> None:
    """Be the server: print the port, run the experiment, print what it took as JSON."""
    process = psutil.Process()
    with (
        Server(shared_memory=False) as server,
        open_security(state, "127.0.0.1", Membership(enroll_port=0)) as security,
    ):
        port = server.listen(security=security)
        enroll_administrator(security, state / "admin", "127.0.0.1", port)
        print(port, flush=True)
        one, store = experiment(sites, rounds, evaluated_every), DiskRunStore.create(state / "run", "run")
        store.begin(one)
        while len(server.coordinator.present({})) < sites:
            time.sleep(0.2)
        before, began = process.cpu_times(), time.perf_counter()
        outcome = run_session(one, store, fleet_access(server.coordinator), (), stop=threading.Event())
        after, wall_s = process.cpu_times(), time.perf_counter() - began
        if outcome.error is not None:
            raise outcome.error
        updates = [len(record.cohort) - len(record.failures) for record in outcome.history]
        cpu_s = after.user + after.system - before.user - before.system
        row = {
            "sites": sites,
            "rounds": rounds,
            "evaluated every": evaluated_every,
            "updates missing": sites * rounds - sum(updates),
            "CPU ms/site and round": 1000 * cpu_s / (sites * rounds),
            "server PSS MB": process.memory_full_info().pss / _MB,
            "seconds/round": wall_s / rounds,
        }
        print(json.dumps(row), flush=True)


def connect(state: Path, first: int, last: int) -> None:
    """Be the agents of some of the sites, until the server sends them away."""
    threads = []
    for index in range(first, last):
        identity = Identity.load(state / "devices" / f"{index:04}")
        channel = GrpcChannel(identity.address, identity=lambda identity=identity: identity)  # type: ignore[misc]
        agent = Agent(channel, identity.name, NodeSetup(states=state / "states" / identity.name), give_up_s=30)
        threads.append(threading.Thread(target=agent.run, daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()


def measure(sites: int, rounds: int, evaluated_every: int) -> dict[str, Any]:
    """Run the experiment once; returns what it took."""
    with tempfile.TemporaryDirectory(prefix="fedloom-sites-") as folder:
        state, size = Path(folder), ["--sites", str(sites), "--rounds", str(rounds)]
        size += ["--evaluated-every", str(evaluated_every)]
        here = [sys.executable, "-m", "benchmarks.sites", "--state", folder, *size]
        server = subprocess.Popen([*here, "--serve"], stdout=subprocess.PIPE, encoding="utf-8")
        assert server.stdout is not None
        server.stdout.readline()
        enroll(state, sites)
        edges = [sites * part // _PROCESSES for part in range(_PROCESSES + 1)]
        agents = [
            subprocess.Popen([*here, "--connect", str(first), str(last)]) for first, last in itertools.pairwise(edges)
        ]
        try:
            row: dict[str, Any] = json.loads(server.stdout.readline())
            return row
        finally:
            programs: list[subprocess.Popen[Any]] = [*agents, server]
            for program in programs:
                program.kill()
                program.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sites", description=__doc__)
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--evaluated-every", type=int, default=1, help="rounds between evaluations; 0 for none")
    parser.add_argument("--state", type=Path, help="where the server and the sites have their identities")
    parser.add_argument("--serve", action="store_true", help="be the server")
    parser.add_argument("--connect", type=int, nargs=2, metavar=("FIRST", "LAST"), help="be these sites")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.state, options.sites, options.rounds, options.evaluated_every)
    elif options.connect:
        connect(options.state, *options.connect)
    else:
        row = measure(options.sites, options.rounds, options.evaluated_every)
        print(micro_table("Sites of one run, over mutual TLS", [row]))
        if options.json is not None:
            options.json.write_text(json.dumps(row) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
