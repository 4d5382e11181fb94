"""The compose file names commands, options, ports and programs that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from deploy_files import COMPOSE, DEPLOY, PROMETHEUS, ROOT, compose, parse_command

from fedloom.simulation import api

SERVICES = compose()["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


def test_it_has_the_three_profiles() -> None:
    used = {profile for service in SERVICES.values() for profile in service["profiles"]}
    assert used == {"simulate", "federate", "observe"}
    assert {name for name, each in SERVICES.items() if "simulate" in each["profiles"]} == {
        "ray-head", "ray-worker", "simulation",
    }  # fmt: skip
    assert {name for name, each in SERVICES.items() if "federate" in each["profiles"]} == {"token", "server", "client"}
    assert {"prometheus", "grafana", "server"} <= {
        name for name, each in SERVICES.items() if "observe" in each["profiles"]
    }


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_a_service_waits_for_is_in_its_profiles(name: str) -> None:
    for other in SERVICES[name].get("depends_on", []):
        assert set(SERVICES[name]["profiles"]) <= set(SERVICES[other]["profiles"]), f"{name} waits for {other}"


@pytest.mark.parametrize("name", [name for name, each in OURS.items() if "entrypoint" not in each])
def test_commands_are_fedlooms(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    service = OURS[name]
    token = tmp_path / "token"
    token.write_text("secret\n")
    given = {key: str(token) if key.endswith("_FILE") else value for key, value in service["environment"].items()}
    context = parse_command(service["command"], given, monkeypatch)
    if name == "server":
        assert context.params["port"] == 7070 and context.params["metrics_port"] == 9090
        assert context.params["host"] == "0.0.0.0"
    else:
        assert context.params["server"] == "server:7070"
    assert Path(context.params["token_file"]) == token


def test_a_wrong_option_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(click.UsageError):
        parse_command(["serve", "--metrics", "9090"], {}, monkeypatch)


def test_the_simulated_experiment_is_a_preset() -> None:
    (target,) = SERVICES["simulation"]["command"]
    assert target in api.presets()
    script = (DEPLOY / "ray" / "run-on-cluster.sh").read_text()
    (line,) = re.findall(r"^exec fedloom (.*)$", script, re.MULTILINE)
    assert re.findall(r"--[\w-]+", line) == ["--ray-address", "--workers"]


def test_ray_options_are_rays() -> None:
    import ray.scripts.scripts

    known = {option for each in ray.scripts.scripts.start.params for option in each.opts}
    for name in ("ray-head", "ray-worker"):
        words = [*SERVICES[name]["entrypoint"], *SERVICES[name]["command"]]
        assert words[:2] == ["ray", "start"]
        assert {word.partition("=")[0] for word in words[2:]} <= known


def test_prometheus_asks_the_port_the_server_has() -> None:
    (job,) = yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["server:9090"]}]
    assert "9090" in SERVICES["server"]["command"]


def test_ports_are_published_on_this_machine_only() -> None:
    published = [port for each in SERVICES.values() for port in each.get("ports", [])]
    assert len(published) == 3 and all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_containers_can_do_little(name: str) -> None:
    service: dict[str, Any] = OURS[name]
    assert service["cap_drop"] == ["ALL"] and "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    if service.get("restart") == "unless-stopped":
        assert service["healthcheck"]["test"][:2] == ["CMD", "fedloom-health"]


def test_bound_files_are_there_and_volumes_are_declared() -> None:
    declared = set(compose()["volumes"])
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            place = volume.split(":")[0]
            assert (ROOT / place).exists() if place.startswith(".") else place in declared, place


def test_no_secret_and_no_path_of_a_machine() -> None:
    for path in [COMPOSE, *(path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc")]:
        text = path.read_text()
        assert not re.search(r"(?<!\w)/(work|root/(?!\.cache/pip)|tmp/(?!ray-start)|home/(?!fedloom))", text), path
        assert not re.search(r"(?i)(password|secret|token): *['\"]?[A-Za-z0-9+/_-]{16,}['\"]?\s*$", text), path
