"""Kubernetes objects, the Ray cluster file, the systemd unit and the installer of edge devices."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from deploy_files import COMPOSE, DEPLOY, compose, objects, parse_command

EDGE = DEPLOY / "edge"
SCRIPTS = [EDGE / "install.sh", DEPLOY / "ray" / "run-on-cluster.sh"]
POD_OWNERS = [each for each in objects() if "template" in each["spec"]]


def _container(owner: dict[str, Any]) -> dict[str, Any]:
    (container,) = owner["spec"]["template"]["spec"]["containers"]
    return dict(container)


def test_objects_have_kinds_and_names_of_their_own() -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in objects()]
    assert len(names) == len(set(names))
    assert {kind for kind, _ in names} == {"Service", "StatefulSet", "Deployment", "NetworkPolicy"}


@pytest.mark.parametrize("owner", POD_OWNERS, ids=lambda each: each["metadata"]["name"])
def test_pods_run_fedloom(owner: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    container = _container(owner)
    (tmp_path / "token").write_text("secret\n")
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    context = parse_command(container["args"], {**given, "FEDLOOM_TOKEN_FILE": str(tmp_path / "token")}, monkeypatch)
    services = {each["metadata"]["name"]: each for each in objects() if each["kind"] == "Service"}
    ports = {port["name"]: port["port"] for port in services["server"]["spec"]["ports"]}
    assert given["FEDLOOM_SERVER"] == f"server:{ports['grpc']}"
    if container["args"][0] == "serve":
        declared = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert declared == {"grpc": context.params["port"], "metrics": context.params["metrics_port"]} == ports


@pytest.mark.parametrize("owner", POD_OWNERS, ids=lambda each: each["metadata"]["name"])
def test_pods_can_do_little(owner: dict[str, Any]) -> None:
    pod, container = owner["spec"]["template"]["spec"], _container(owner)
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("owner", POD_OWNERS, ids=lambda each: each["metadata"]["name"])
def test_labels_find_their_pods_and_mounts_their_volumes(owner: dict[str, Any]) -> None:
    spec = owner["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    volumes = {each["name"] for each in spec["template"]["spec"]["volumes"]}
    volumes |= {each["metadata"]["name"] for each in spec.get("volumeClaimTemplates", [])}
    assert {each["name"] for each in _container(owner)["volumeMounts"]} == volumes


def test_there_is_one_server_and_it_is_what_the_service_finds() -> None:
    (server,) = [each for each in objects() if each["kind"] == "StatefulSet"]
    (service,) = [each for each in objects() if each["kind"] == "Service"]
    assert server["spec"]["replicas"] == 1 and server["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == server["spec"]["template"]["metadata"]["labels"]


def test_objects_are_valid_for_kubernetes() -> None:
    """Against the schemas of the package kubernetes-validate, which is too large to be asked of everybody."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for each in objects():
        validate.validate(each, validate.latest_version(), strict=True)


def test_kubernetes_and_compose_start_the_same() -> None:
    services = compose()["services"]
    for owner in POD_OWNERS:
        assert _container(owner)["args"] == services[owner["metadata"]["name"]]["command"], COMPOSE.name


def test_the_ray_cluster_file_is_valid_for_ray() -> None:
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((DEPLOY / "ray" / "cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["max_workers"] == len(cluster["provider"]["worker_ips"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_shell(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_the_unit_starts_the_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(EDGE / "fedloom-client.service")
    program, *words = unit["Service"]["ExecStart"].replace("${FEDLOOM_NODE}", "north-1").split()
    assert program == "/opt/fedloom/bin/fedloom"
    (tmp_path / "token").write_text("secret\n")
    given = {"FEDLOOM_SERVER": "a.example:7070", "FEDLOOM_TOKEN_FILE": str(tmp_path / "token")}
    context = parse_command(words, given, monkeypatch)
    assert (context.params["server"], context.params["name"]) == ("a.example:7070", "north-1")
    assert unit["Service"]["User"] == "fedloom" and unit["Service"]["NoNewPrivileges"] == "yes"


def _install(*arguments: str, machine: str = "x86_64", folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the installer dry, on a machine of a kind."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    uname = programs / "uname"
    uname.write_text(f"#!/bin/sh\ncase $1 in -s) echo Linux;; -n) echo device-7;; *) echo {machine};; esac\n")
    uname.chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    command = [EDGE / "install.sh", "--dry-run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=False)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_installer_says_what_it_would_do(machine: str, tmp_path: Path) -> None:
    token = tmp_path / "secret"
    token.write_text("very-secret\n")
    done = _install("--server", "a.example:7070", "--token-file", str(token), machine=machine, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for step in (
        "+ python3 -m venv --clear /opt/fedloom",
        "requirements.lock",
        f"+ install -m 0600 {token} /etc/fedloom/token",
        "FEDLOOM_SERVER=a.example:7070",
        "FEDLOOM_NODE=device-7",
        "+ systemctl enable --now fedloom-client.service",
    ):
        assert step in done.stdout
    assert "very-secret" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "machine", "message"),
    [
        (["--server", "a.example"], "x86_64", "--server: expected HOST:PORT, got 'a.example'"),
        (["--server", "a:1"], "x86_64", "--token-file: expected a file with the server's token, got ''"),
        (["--server"], "x86_64", "--server needs a value"),
        (["--sever", "a:1"], "x86_64", "unknown option --sever"),
        (["--no-service", "--from", "/no/such"], "x86_64", "--from /no/such: no such file or folder"),
        (["--no-service"], "armv7l", "expected Linux on x86_64 or aarch64"),
    ],
)
def test_the_installer_refuses_what_cannot_work(
    arguments: list[str], machine: str, message: str, tmp_path: Path
) -> None:
    done = _install(*arguments, machine=machine, folder=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert "+" not in done.stdout


def test_without_a_service_only_programs_are_installed(tmp_path: Path) -> None:
    done = _install("--no-service", folder=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2
    assert "systemctl" not in done.stdout
