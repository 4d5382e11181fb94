"""A server and its agents as programs: runs queued from outside, kill -9 in the middle, and an orderly end."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support_paths import SUPPORT

from fedloom import api
from fedloom.client.control import ControlClient
from fedloom.core.config import Experiment
from fedloom.core.errors import ServerUnreachable
from fedloom.testing.fleet import wait_until

Make = Callable[..., Experiment]
TOKEN = "of-this-test"

SERVER = """
import sys
from fedloom.core.errors import FedloomError
from fedloom.server.standing import ServerSettings, serve
port, state, metrics = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
from pathlib import Path
try:
    settings = ServerSettings(port=port, state=Path(state), token=sys.argv[4], metrics_port=metrics or None)
    serve(settings, on_ready=lambda address: print("ready", address, flush=True))
except FedloomError as exc:
    print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
    sys.exit(exc.exit_code)
"""
AGENT = """
import sys
import fedloom.client.agent as agent
agent.LAST_RETRY_S = 0.5
from fedloom.client.app import run_client
run_client(sys.argv[1], name=sys.argv[2], token=sys.argv[3], give_up_s=60)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Programs:
    """Subprocesses of one test; all are gone when it ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[subprocess.Popen[str]] = []

    def start(self, code: str, *arguments: object) -> subprocess.Popen[str]:
        program = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=(self._folder / f"stderr-{len(self._all)}.txt").open("w", encoding="utf-8"),
            encoding="utf-8",
            cwd=self._folder,
        )
        self._all.append(program)
        return program

    def server(self, port: int = 0, metrics: int = 0) -> tuple[subprocess.Popen[str], str]:
        program = self.start(SERVER, port, "state", metrics, TOKEN)
        assert program.stdout is not None
        line = program.stdout.readline()
        assert line.startswith("ready 127.0.0.1:"), (line, self.errors())
        return program, line.split()[1]

    def agent(self, address: str, name: str) -> subprocess.Popen[str]:
        return self.start(AGENT, address, name, TOKEN)

    def errors(self) -> str:
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted(self._folder.glob("stderr-*.txt")))

    def close(self) -> None:
        for program in self._all:
            program.kill()
            program.wait()
            if program.stdout is not None:
                program.stdout.close()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with contextlib.closing(Programs(tmp_path)) as started:
        yield started


def model_sha256(state: Path, run_id: str) -> Any:
    return json.loads((state / "runs" / run_id / "summary.json").read_text(encoding="utf-8"))["model_sha256"]


def test_two_runs_survive_the_servers_death_and_have_the_bits_of_inline_runs(
    programs: Programs, linear: Make, tmp_path: Path
) -> None:
    # Models and what each client keeps are large enough to travel in shared memory.
    slow = {"name": str(SUPPORT / "counting.py"), "size": 40_000, "sleep_s": 0.02}
    experiments = [linear(name=f"run {seed}", seed=seed, rounds=8, workload=slow) for seed in (1, 2)]
    port = free_port()
    server, address = programs.server(port)
    agents = [programs.agent(address, name) for name in ("north", "south")]
    with ControlClient(address, TOKEN) as control:
        wait_until(lambda: len(control.nodes()) == 2, what="both agents")
        ids = [control.submit(experiment) for experiment in experiments]
        watched: list[dict[str, Any]] = []
        broken: list[Exception] = []

        def watch() -> None:
            try:
                watched.extend(control.watch(ids[0]))
            except ServerUnreachable as exc:
                broken.append(exc)

        watcher = threading.Thread(target=watch)
        watcher.start()
        wait_until(lambda: control.runs()[0].rounds_done >= 3, 60, "round 3")
        assert [row.status for row in control.runs()] == ["running", "queued"]
        nodes = control.nodes()
        assert [row.node for row in nodes] == ["north", "south"]
        assert {row.facts["pid"] for row in nodes} == {agent.pid for agent in agents}
        assert all(row.groups_done > 0 and row.last_seen_s < 20 for row in nodes)
        server.send_signal(signal.SIGKILL)
        watcher.join(60)
        assert not watcher.is_alive() and broken, "a watcher is told that the server is gone"
    server, address = programs.server(port)
    with ControlClient(address, TOKEN) as control:
        events = list(control.watch(ids[0]))
        assert events[-1]["event"] == "RunFinished" and events[-1]["summary"]["status"] == "done"
        reported = [event["record"]["round"] for event in events if event["event"] == "RoundFinished"]
        assert set(reported) == set(range(1, 9)), "past rounds, those before the kill too, and coming ones"
        wait_until(lambda: [row.status for row in control.runs()] == ["done", "done"], 60, "the end of both runs")
        assert {row.facts["pid"] for row in control.nodes()} == {agent.pid for agent in agents}, "none was restarted"
    assert all(agent.poll() is None for agent in agents)
    for run_id, experiment in zip(ids, experiments, strict=True):
        want = api.run(experiment, keep=False).summary.model_sha256
        assert model_sha256(tmp_path / "state", run_id) == want, programs.errors()
        rounds = (tmp_path / "state" / "runs" / run_id / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["round"] for line in rounds] == list(range(1, 9))
        assert not any(json.loads(line)["failures"] for line in rounds)
    for agent in agents:
        agent.send_signal(signal.SIGTERM)
    assert [agent.wait(60) for agent in agents] == [0, 0]


def test_a_terminated_server_keeps_its_run_queued_and_the_next_finishes_it(
    programs: Programs, linear: Make, tmp_path: Path
) -> None:
    experiment = linear(rounds=6, workload={"sleep_s": 0.05})
    port = free_port()
    server, address = programs.server(port)
    agent = programs.agent(address, "one")
    with ControlClient(address, TOKEN) as control:
        run_id = control.submit(experiment)
        wait_until(lambda: control.runs()[0].rounds_done >= 1, 60, "round 1")
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0, programs.errors()
    server, address = programs.server(port)
    with ControlClient(address, TOKEN) as control:
        assert control.runs()[0].status in ("queued", "running")
        wait_until(lambda: control.runs()[0].status == "done", 60, "the end")
        assert model_sha256(tmp_path / "state", run_id) == api.run(experiment, keep=False).summary.model_sha256
        assert control.stop(run_id) == "done"
    assert agent.poll() is None, "the agent waited for the server to come back"


def test_a_run_is_stopped_from_outside_and_its_watcher_notified(programs: Programs, linear: Make) -> None:
    _, address = programs.server()
    with ControlClient(address, TOKEN) as control:
        run_id = control.submit(linear(rounds=1000))  # and no agent at all
        wait_until(lambda: control.runs()[0].status == "running", 60)
        assert control.stop(run_id) == "running"
        events = list(control.watch(run_id))
        assert events[-1]["event"] == "RunFinished" and events[-1]["summary"]["status"] == "interrupted"
        wait_until(lambda: control.runs()[0].status == "interrupted", 60)


@pytest.mark.parametrize("which", ["port", "metrics"])
def test_a_port_in_use_is_said_and_nothing_is_changed(programs: Programs, tmp_path: Path, which: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = (port, 0) if which == "port" else (0, port)
        program = programs.start(SERVER, ports[0], "state", ports[1], TOKEN)
        assert program.wait(60) == 2
    text = programs.errors()
    assert "UsageError" in text and f"127.0.0.1:{port}" in text and "Choose another --" in text
    assert "Traceback" not in text


def test_prometheus_finds_the_documented_metrics_during_a_run(programs: Programs, linear: Make) -> None:
    metrics = free_port()
    _, address = programs.server(metrics=metrics)
    programs.agent(address, "north")
    with ControlClient(address, TOKEN) as control:
        run_id = control.submit(
            linear(rounds=400, cohort=6, workload={"fail_clients": [0]}, round={"quorum_fraction": 0.5})
        )
        wait_until(lambda: control.runs()[0].rounds_done >= 3, 60, "round 3")
        page = scrape(metrics)
        control.stop(run_id)
    for name, kind in (
        ("fedloom_round", "gauge"),
        ("fedloom_rounds_total", "counter"),
        ("fedloom_cohort_clients", "gauge"),
        ("fedloom_update_latency_seconds", "histogram"),
        ("fedloom_round_seconds", "histogram"),
        ("fedloom_aggregation_seconds", "histogram"),
        ("fedloom_federated_bytes_total", "counter"),
        ("fedloom_wire_bytes_total", "counter"),
        ("fedloom_client_failures_total", "counter"),
        ("fedloom_late_results_total", "counter"),
        ("fedloom_nodes", "gauge"),
        ("fedloom_evaluation", "gauge"),
    ):
        assert re.search(f"^# TYPE {name} {kind}$", page, re.M), name
    values = dict(re.findall(r"^(fedloom_[^ ]+) (\S+)$", page, re.M))
    run = f'run="{run_id}"'
    assert float(values[f"fedloom_rounds_total{{{run}}}"]) >= 3
    assert float(values[f"fedloom_cohort_clients{{{run}}}"]) == 6
    assert float(values[f"fedloom_round_seconds_count{{{run}}}"]) == float(values[f"fedloom_rounds_total{{{run}}}"])
    assert float(values[f'fedloom_federated_bytes_total{{direction="up",{run}}}']) > 0
    assert float(values['fedloom_wire_bytes_total{direction="up",node="north"}']) > 0
    assert float(values['fedloom_nodes{state="online"}']) == 1
    assert float(values[f'fedloom_client_failures_total{{error="RuntimeError",{run},stage="train"}}']) >= 1
    assert f'fedloom_evaluation{{metric="loss",{run}}}' in values


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        return str(reply.read().decode())
