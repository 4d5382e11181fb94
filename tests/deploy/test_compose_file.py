"""The compose file names commands, options, ports and programs that there are."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from deploy_files import COMPOSE, DEPLOY, PROMETHEUS, ROOT, compose, parse_command

from fedloom import api

SERVICES = compose()["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


def test_it_has_the_three_profiles() -> None:
    used = {profile for service in SERVICES.values() for profile in service["profiles"]}
    assert used == {"simulate", "federate", "observe"}
    assert {name for name, each in SERVICES.items() if "simulate" in each["profiles"]} == {
        "ray-head", "ray-worker", "simulation",
    }  # fmt: skip
    assert {name for name, each in SERVICES.items() if "federate" in each["profiles"]} == {"server", "invite", "client"}
    assert {"prometheus", "grafana", "server"} <= {
        name for name, each in SERVICES.items() if "observe" in each["profiles"]
    }


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_a_service_waits_for_is_in_its_profiles(name: str) -> None:
    for other in SERVICES[name].get("depends_on", []):
        assert set(SERVICES[name]["profiles"]) <= set(SERVICES[other]["profiles"]), f"{name} waits for {other}"


def test_the_servers_command_is_fedlooms(monkeypatch: pytest.MonkeyPatch) -> None:
    server = OURS["server"]
    context = parse_command(server["command"], server["environment"], monkeypatch)
    given = {name: context.params[name] for name in ("host", "port", "enroll_port", "metrics_port", "address")}
    assert given == {"host": "0.0.0.0", "port": 7070, "enroll_port": 7071, "metrics_port": 9090, "address": "server"}
    assert Path(server["environment"]["FEDLOOM_IDENTITY"]) == Path(context.params["state"]) / "admin"
    assert context.params["insecure"] == 0


def _script_calls(path: Path) -> list[list[str]]:
    """What a script says to fedloom, one list of words a call, with its variables."""
    return [
        line.split()
        for line in re.findall(
            r"(?:until|exec) fedloom (.+?)(?: *[\d]?[<>].*)?(?:; do)?$", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    ]


def test_scripts_of_containers_call_commands_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [call for path in sorted((DEPLOY / "containers").iterdir()) for call in _script_calls(path)]
    assert [call[0] for call in calls] == ["token", "join", "client"]
    for call in calls:
        words = [word.strip('"') for word in call if word != '"$@"']
        parse_command([{"$USES": "3"}.get(word, word) for word in words], {}, monkeypatch)


def test_the_token_goes_from_the_server_to_the_clients_and_to_nobody_else() -> None:
    holders = {
        name for name, each in OURS.items() if any(str(v).startswith("tokens:") for v in each.get("volumes", []))
    }
    assert holders == {"invite", "client"}
    invite, client = OURS["invite"], OURS["client"]
    assert invite["command"][1] == client["environment"]["JOIN_TOKEN_FILE"]
    assert invite["environment"]["FEDLOOM_IDENTITY"] == OURS["server"]["environment"]["FEDLOOM_IDENTITY"]
    assert invite["network_mode"] == "service:server", "an administrator's identity is for this machine only"
    assert "state:/state:ro" in invite["volumes"] and "tokens:/tokens:ro" in client["volumes"]
    shared = {volume.split(":")[1] for volume in client["volumes"] if ":" in volume}
    identity = Path(client["environment"]["FEDLOOM_IDENTITY"])
    assert not shared & {str(identity), *map(str, identity.parents)}, "each container keeps its own"


def test_a_wrong_option_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(click.UsageError):
        parse_command(["serve", "--metrics", "9090"], {}, monkeypatch)


def test_the_simulated_experiment_is_a_preset() -> None:
    (target,) = SERVICES["simulation"]["command"]
    assert target in api.presets()
    script = (DEPLOY / "ray" / "run-on-cluster.sh").read_text(encoding="utf-8")
    (line,) = re.findall(r"^exec fedloom (.*)$", script, re.MULTILINE)
    assert re.findall(r"--[\w-]+", line) == ["--ray-address", "--workers"]


def test_ray_options_are_rays() -> None:
    import ray.scripts.scripts

    known = {option for each in ray.scripts.scripts.start.params for option in each.opts}
    for name in ("ray-head", "ray-worker"):
        words = [*SERVICES[name]["entrypoint"], *SERVICES[name]["command"]]
        assert words[0] == "fedloom-ray"
        assert {word.partition("=")[0] for word in words[1:]} <= known
    last = (DEPLOY / "containers" / "ray.sh").read_text(encoding="utf-8").splitlines()[-1]
    assert last == 'exec ray start "$@"'


def test_rays_token_is_made_by_its_head_and_seen_by_the_cluster_alone() -> None:
    cluster = {"ray-head", "ray-worker", "simulation"}
    holders = {
        name: volume
        for name, each in OURS.items()
        for volume in each.get("volumes", [])
        if volume.startswith("ray-token:")
    }
    assert holders == {**dict.fromkeys(cluster, "ray-token:/ray-token:ro"), "ray-head": "ray-token:/ray-token"}
    for name in cluster:
        environment = OURS[name]["environment"]
        assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN_PATH"]) == ("token", "/ray-token/token")


def test_rays_head_makes_a_token_once_that_others_of_the_machine_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "ray").write_text('#!/bin/sh\necho "$RAY_AUTH_MODE $*"\n', encoding="utf-8")
    (tmp_path / "ray").chmod(0o755)
    token = tmp_path / "token"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_AUTH_TOKEN_PATH": str(token)}
    made = set()
    for _ in range(2):
        command = [str(DEPLOY / "containers" / "ray.sh"), "--head", "--block"]
        said = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True).stdout
        assert said == "token start --head --block\n" and token.stat().st_mode & 0o777 == 0o600
        made.add(token.read_text(encoding="utf-8"))
    assert len(made) == 1 and len(made.pop().strip()) == 64


def test_prometheus_asks_the_port_the_server_has() -> None:
    (job,) = yaml.safe_load(PROMETHEUS.read_text(encoding="utf-8"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["server:9090"]}]
    assert "9090" in SERVICES["server"]["command"]


def test_ports_are_published_on_this_machine_only() -> None:
    published = [port for each in SERVICES.values() for port in each.get("ports", [])]
    assert len(published) == 4 and all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_containers_can_do_little(name: str) -> None:
    service: dict[str, Any] = OURS[name]
    assert service["cap_drop"] == ["ALL"] and "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "1000:1000" and service["read_only"] is True
    assert service["mem_limit"] and service["pids_limit"] <= 8192
    written = {volume.split(":")[1] for volume in service.get("volumes", []) if volume.count(":") == 1}
    written |= {place.partition(":")[0] for place in service["tmpfs"]}
    assert {"/tmp", "/home/fedloom"} <= written
    if service.get("restart") == "unless-stopped":
        assert service["healthcheck"]["test"][:2] == ["CMD", "fedloom-health"]


def test_bound_files_are_there_and_volumes_are_declared() -> None:
    declared = set(compose()["volumes"])
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            place = volume.split(":")[0]
            if place.startswith("/"):  # of this container alone
                continue
            assert (ROOT / place).exists() if place.startswith(".") else place in declared, place


def test_no_secret_and_no_path_of_a_machine() -> None:
    for path in [COMPOSE, *(path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<!\w)/(work|root/(?!\.cache/pip)|tmp/(?!ray-start|invite)|home/(?!fedloom))", text), (
            path
        )
        assert not re.search(r"(?i)(password|secret|token): *['\"]?[A-Za-z0-9+/_-]{16,}['\"]?\s*$", text), path
