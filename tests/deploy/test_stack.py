"""Every profile of the compose file, up in containers: runs finish, containers die, the dashboard shows it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import podman_stack
import pytest
import yaml
from deploy_files import DATASOURCE, panel_queries
from podman_stack import IMAGE, Podman, Stack, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.containers,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(podman_stack.missing()), reason=podman_stack.missing()),
]
ROUNDS = 800
"""Enough to be in the middle of when something dies: half a minute on two cores with nothing else to do."""
SETTINGS = (f"rounds={ROUNDS}", "workload.training.epochs=5")
QUERY = """
import json, sys, urllib.parse, urllib.request
for query in json.load(sys.stdin):
    url = sys.argv[1] + "/api/v1/query?" + urllib.parse.urlencode({"query": query})
    print(urllib.request.urlopen(url, timeout=10).read().decode())
"""


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    made = Podman(tmp_path_factory.mktemp("podman"))
    print(f"\nimages: {made.build_all():.0f} s")
    return made


@pytest.fixture(scope="module")
def expected_sha256(podman: Podman) -> str:
    """The final model of the same experiment in one process of one container."""
    settings = [word for each in SETTINGS for word in ("--set", each)]
    said = podman(
        "run", "--rm", "--network", "none", "--workdir", "/runs", IMAGE, "run", "digits-fedavg",
        "--runtime", "inline", "--json", *settings, timeout_s=600,
    )  # fmt: skip
    return str(json.loads(said.splitlines()[-1])["model_sha256"])


@pytest.fixture
def fleet(podman: Podman) -> Iterator[Stack]:
    ports = {
        "FEDLOOM_PORT": "17070",
        "FEDLOOM_ENROLL_PORT": "17071",
        "PROMETHEUS_PORT": "19091",
        "GRAFANA_PORT": "13000",
    }
    where = {"CLIENTS": "3", "FEDLOOM_ADDRESS": "fleet.example.org"}
    with Stack(podman, ("federate", "observe"), **where, **ports) as stack:
        yield stack
    assert not stack.leftovers()


def _ask(stack: Stack, queries: list[str]) -> list[list[Any]]:
    """Answers of Prometheus at the address Grafana has, from where Grafana is."""
    (source,) = yaml.safe_load(DATASOURCE.read_text(encoding="utf-8"))["datasources"]
    program = QUERY.replace("json.load(sys.stdin)", repr(queries))
    said = stack.execute("grafana", "python3", "-c", program, source["url"], check=False)
    return [json.loads(line)["data"]["result"] for line in said.splitlines()]


def _value(stack: Stack, query: str) -> float:
    answers = _ask(stack, [query])
    return float(answers[0][0]["value"][1]) if answers and answers[0] else 0.0


def _members(stack: Stack) -> list[str]:
    """Names of the nodes that have joined, as the server's administrator sees them."""
    lines = stack.execute("server", "fedloom", "node", "list").splitlines()
    return sorted(word for line in lines for word in line.split() if word.startswith("client-"))


def _kill(container: dict[str, Any]) -> None:
    """As a power cut would: the container's first process, at once."""
    os.kill(container["State"]["Pid"], signal.SIGKILL)


def test_a_federation_is_up_scraped_and_shown_and_survives_dead_clients(fleet: Stack, expected_sha256: str) -> None:
    begin = time.monotonic()
    fleet.up()
    up_s = time.monotonic() - begin
    until(lambda: _value(fleet, 'fedloom_nodes{state="online"}') == 3, "three clients in Prometheus")
    scraped_s = time.monotonic() - begin
    settings = [word for each in SETTINGS for word in ("--set", each)]
    run = fleet.execute("server", "fedloom", "submit", "digits-fedavg", *settings).strip()
    until(lambda: _value(fleet, "fedloom_round") >= 1, "a round on the dashboard")
    live_s = time.monotonic() - begin
    print(f"\nup {up_s:.1f} s, clients scraped {scraped_s:.1f} s, rounds on the dashboard {live_s:.1f} s")

    members = _members(fleet)
    assert members == ["client-1", "client-2", "client-3"], "each container joined once, by one token"
    keys = {
        fleet.podman("exec", each["Name"], "sha256sum", "/identity/node/key.pem") for each in fleet.containers("client")
    }
    assert len(keys) == 3, "each made a key of its own"

    before = fleet.containers("client")[0]
    _kill(before)
    died_at = _value(fleet, "fedloom_round")

    def replaced() -> bool:
        now = fleet.containers("client")[0]["State"]
        return bool(now["Running"] and now["Pid"] != before["State"]["Pid"])

    until(replaced, "the killed client's container, started again")
    until(lambda: _value(fleet, 'fedloom_nodes{state="online"}') == 3, "the killed client, connected again")
    assert 0 < died_at < ROUNDS, "the client died during the run"
    assert _members(fleet) == members, "the killed client kept its identity"

    fleet.podman("rm", "--force", "--time", "0", fleet.containers("client")[1]["Name"])
    fleet.up()
    until(lambda: _value(fleet, 'fedloom_nodes{state="online"}') == 3, "another client in place of the removed one")
    assert _members(fleet) == [*members, "client-4"], "a new container is a new node"

    until(lambda: _value(fleet, 'fedloom_evaluation{metric="accuracy"}') > 0, "an evaluation")
    queries = panel_queries()
    answers = _ask(fleet, [query for _, query in queries])
    empty = [title for (title, _), found in zip(queries, answers, strict=True) if not found]
    assert not empty, f"panels without data: {empty}"

    for service in ("server", "client"):
        fleet.execute(service, "fedloom-health")
    said = fleet.execute("server", "fedloom", "watch", run, "--json")
    summary = json.loads(said.splitlines()[-1])
    assert (summary["status"], summary["model_sha256"]) == ("done", expected_sha256)


def test_a_server_container_that_is_killed_continues_with_its_run(fleet: Stack, expected_sha256: str) -> None:
    fleet.up()
    until(lambda: "client" in fleet.execute("server", "fedloom", "nodes", check=False), "clients")
    settings = [word for each in SETTINGS for word in ("--set", each)]
    run = fleet.execute("server", "fedloom", "submit", "digits-fedavg", *settings).strip()
    server = fleet.containers("server")[0]
    rounds = ("exec", server["Name"], "sh", "-c", f"cat /state/server/runs/{run}/rounds.jsonl | wc -l")
    done = until(lambda: int(fleet.podman(*rounds, check=False)), "two rounds")
    _kill(server)
    assert done < ROUNDS, "the server died during the run"
    until(lambda: "running" in fleet.execute("server", "fedloom", "runs", check=False), "the run, going on")
    summary = json.loads(fleet.execute("server", "fedloom", "watch", run, "--json").splitlines()[-1])
    assert (summary["status"], summary["model_sha256"]) == ("done", expected_sha256)


def test_a_ray_cluster_of_containers_loses_one_during_a_run(
    podman: Podman, expected_sha256: str, tmp_path: Path
) -> None:
    with Stack(podman, ("simulate",), RAY_WORKERS="2") as stack:
        stack.compose("up", "--detach", "--no-build", "ray-head", "ray-worker")
        settings = [word for each in SETTINGS for word in ("--set", each)]
        stack.compose("run", "--detach", "simulation", "digits-fedavg", "--json", *settings)
        (simulation,) = stack.containers("simulation")
        rounds = "find /runs -name 'rounds.jsonl' -exec wc -l {} +"

        def finished() -> int:
            said = podman("exec", simulation["Name"], "sh", "-c", rounds, check=False)
            return int(said.split()[0]) if said.split() else 0

        until(lambda: finished() >= 3, "three rounds on the Ray cluster")
        _kill(stack.containers("ray-worker")[0])
        assert podman("wait", simulation["Name"], timeout_s=600).strip() == "0"
        summary = json.loads(podman("logs", simulation["Name"]).splitlines()[-1])
        assert (summary["status"], summary["model_sha256"]) == ("done", expected_sha256)
    assert not stack.leftovers()
