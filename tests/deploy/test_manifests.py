"""Kubernetes objects, the Ray cluster file, the systemd unit and the installer of edge devices."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from deploy_files import COMPOSE, DEPLOY, compose, objects, parse_command

EDGE = DEPLOY / "edge"
UNIT = EDGE / "fedloom-client.service"
SCRIPTS = sorted(DEPLOY.rglob("*.sh"))
POD_OWNERS = [each for each in objects() if "template" in each["spec"]]


def _container(owner: dict[str, Any]) -> dict[str, Any]:
    (container,) = owner["spec"]["template"]["spec"]["containers"]
    return dict(container)


def test_objects_have_kinds_and_names_of_their_own() -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in objects()]
    assert len(names) == len(set(names))
    assert {kind for kind, _ in names} == {"Service", "StatefulSet", "NetworkPolicy"}


def _owner(name: str) -> dict[str, Any]:
    (found,) = [each for each in POD_OWNERS if each["metadata"]["name"] == name]
    return found


def test_the_servers_pod_listens_where_its_service_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    container = _container(_owner("server"))
    context = parse_command(container["args"], {each["name"]: each["value"] for each in container["env"]}, monkeypatch)
    declared = {port["name"]: port["containerPort"] for port in container["ports"]}
    asked = {"grpc": "port", "enroll": "enroll_port", "metrics": "metrics_port"}
    assert declared == {name: context.params[parameter] for name, parameter in asked.items()}
    (service,) = [each for each in objects() if each["kind"] == "Service"]
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == declared
    assert {port["targetPort"] for port in service["spec"]["ports"]} == set(declared)
    assert context.params["address"] == service["metadata"]["name"], "what join tokens say must lead here"
    (policy,) = [each for each in objects() if each["metadata"]["name"] == "server-from-here"]
    assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} == set(declared.values())


def test_pods_reach_what_they_need_and_nothing_else() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in objects() if each["kind"] == "NetworkPolicy"}
    assert all(spec["policyTypes"] == ["Ingress", "Egress"] for spec in policies.values())
    selected = [spec["podSelector"]["matchLabels"] for spec in policies.values()]
    assert all(owner["spec"]["template"]["metadata"]["labels"] in selected for owner in POD_OWNERS)
    server, client = policies["server-from-here"], policies["client-to-server"]
    assert server["egress"] == [] and "ingress" not in client
    assert [port["port"] for rule in client["egress"] for port in rule["ports"]] == [7070, 7071, 53, 53]
    to_server, _ = client["egress"]
    assert to_server["to"][0]["podSelector"]["matchLabels"] == server["podSelector"]["matchLabels"]
    (metrics,) = [rule for rule in server["ingress"] if {"protocol": "TCP", "port": 9090} in rule["ports"]]
    assert len(metrics["ports"]) == 1 and metrics["from"][0]["podSelector"]["matchLabels"]


@pytest.mark.parametrize("owner", POD_OWNERS, ids=lambda each: each["metadata"]["name"])
def test_keys_are_kept_and_stay_private(owner: dict[str, Any]) -> None:
    """In a volume that outlives the pod, and that Kubernetes does not open to the group at each start."""
    spec = owner["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    mounts = {each["name"]: each["mountPath"] for each in _container(owner)["volumeMounts"]}
    given = {each["name"]: each["value"] for each in _container(owner)["env"]}
    kept = Path(given["FEDLOOM_IDENTITY"])
    assert kept.parents[owner["metadata"]["name"] == "server"] == Path(mounts[claim["metadata"]["name"]])
    assert spec["template"]["spec"]["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_the_secret_is_the_one_that_is_said_to_be_made() -> None:
    """The commands at the head of the kustomization make the secret and the key in it that the pods read."""
    commands = (DEPLOY / "kubernetes" / "kustomization.yaml").read_text(encoding="utf-8")
    volumes = _owner("client")["spec"]["template"]["spec"]["volumes"]
    (secret,) = [each["secret"] for each in volumes if "secret" in each]
    given = {each["name"]: each["value"] for each in _container(_owner("client"))["env"]}
    mounts = {each["name"]: each["mountPath"] for each in _container(_owner("client"))["volumeMounts"]}
    key = Path(given["JOIN_TOKEN_FILE"]).name
    assert Path(given["JOIN_TOKEN_FILE"]).parent == Path(mounts["token"])
    assert f"create secret generic {secret['secretName']} --from-file={key}\n" in commands
    assert f"> {key}\n" in commands


@pytest.mark.parametrize("owner", POD_OWNERS, ids=lambda each: each["metadata"]["name"])
def test_probes_ask_for_the_programs_ports(owner: dict[str, Any]) -> None:
    container = _container(owner)
    what = "listening" if owner["metadata"]["name"] == "server" else "connected"
    probes = [container[name] for name in ("startupProbe", "livenessProbe", "readinessProbe") if name in container]
    commands = [probe["exec"]["command"] for probe in probes if "exec" in probe]
    assert commands and all(command == ["fedloom-health", what, "7070"] for command in commands)
    assert [probe["httpGet"] for probe in probes if "httpGet" in probe] == (
        [{"path": "/metrics", "port": "metrics"}] if what == "listening" else []
    )


@pytest.mark.parametrize("owner", POD_OWNERS, ids=lambda each: each["metadata"]["name"])
def test_pods_can_do_little(owner: dict[str, Any]) -> None:
    pod, container = owner["spec"]["template"]["spec"], _container(owner)
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert {"memory", "ephemeral-storage"} <= set(container["resources"]["limits"])
    writable = {each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")}
    assert {"/tmp", "/home/fedloom"} < writable


@pytest.mark.parametrize("owner", POD_OWNERS, ids=lambda each: each["metadata"]["name"])
def test_labels_find_their_pods_and_mounts_their_volumes(owner: dict[str, Any]) -> None:
    spec = owner["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    volumes = {each["name"] for each in spec["template"]["spec"].get("volumes", [])}
    volumes |= {each["metadata"]["name"] for each in spec.get("volumeClaimTemplates", [])}
    assert {each["name"] for each in _container(owner)["volumeMounts"]} == volumes


def test_there_is_one_server_and_it_is_what_the_service_finds() -> None:
    server = _owner("server")
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
    assert _container(_owner("server"))["args"] == services["server"]["command"], COMPOSE.name
    assert _container(_owner("client"))["command"] == services["client"]["entrypoint"]
    given = {each["name"]: each["value"] for each in _container(_owner("client"))["env"]}
    assert given == services["client"]["environment"]


def test_kustomize_puts_the_objects_together() -> None:
    """As `kubectl apply -k` would send them: all in the namespace, with the image's own name and tag."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    folder = DEPLOY / "kubernetes"
    said = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, encoding="utf-8", check=True).stdout
    made = list(yaml.safe_load_all(said))
    assert len(made) == len(objects()) and {each["metadata"]["namespace"] for each in made} == {"fedloom"}
    assert {_container(each)["image"] for each in made if "template" in each["spec"]} == {"fedloom:cpu"}


def test_the_ray_cluster_file_is_valid_for_ray() -> None:
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    cluster = yaml.safe_load((DEPLOY / "ray" / "cluster.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(cluster, schema)
    assert cluster["max_workers"] == len(cluster["provider"]["worker_ips"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_shell(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def _unit() -> configparser.RawConfigParser:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT, encoding="utf-8")
    return unit


def test_the_unit_starts_the_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unit = _unit()
    program, *words = unit["Service"]["ExecStart"].split()
    assert program == "/opt/fedloom/bin/fedloom"
    policy = tmp_path / "policy.toml"
    policy.touch()
    context = parse_command([word.replace("/etc/fedloom/policy.toml", str(policy)) for word in words], {}, monkeypatch)
    assert context.params["server"] is None, "it works for the server it has joined"
    script = (EDGE / "install.sh").read_text(encoding="utf-8")
    for name, value in (("identity", str(context.params["identity"])), ("policy", "/etc/fedloom/policy.toml")):
        assert re.search(rf"(^| ){name}={re.escape(value)}( |$)", script, re.MULTILINE), name
    assert Path(context.params["identity"]).parent == Path("/var/lib") / unit["Service"]["StateDirectory"]
    assert unit["Service"]["User"] == "fedloom" and unit["Service"]["NoNewPrivileges"] == "yes"


def test_the_unit_works_in_an_empty_folder_and_within_limits() -> None:
    """Not in the one of the identity: a reader that takes what lies below the working folder finds nothing there."""
    service = _unit()["Service"]
    assert service["WorkingDirectory"] == f"/run/{service['RuntimeDirectory']}"
    assert service["RuntimeDirectoryMode"] == service["StateDirectoryMode"] == "0700"
    assert {"MemoryMax", "TasksMax", "LimitNOFILE"} <= set(service) and service["UMask"] == "0077"


def test_systemd_finds_no_fault_with_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/fedloom/bin/fedloom", "/bin/true"), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, encoding="utf-8", check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def _install(*arguments: str, machine: str = "x86_64", folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the installer dry, on a machine of a kind."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    uname = programs / "uname"
    uname.write_text(
        f"#!/bin/sh\ncase $1 in -s) echo Linux;; -n) echo device-7;; *) echo {machine};; esac\n", encoding="utf-8"
    )
    uname.chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    command = [str(EDGE / "install.sh"), "--dry-run", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=30, check=False)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_installer_says_what_it_would_do(machine: str, tmp_path: Path) -> None:
    token = tmp_path / "secret"
    token.write_text("very-secret\n", encoding="utf-8")
    allow = "image_classification=/srv/digits"
    done = _install("--token-file", str(token), "--allow", allow, machine=machine, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for step in (
        "+ python3 -m venv --clear /opt/fedloom",
        "--dry-run --report ",
        "deploy/dependencies.py",
        "--no-deps --require-hashes --requirement",
        f"fedloom join - --identity /var/lib/fedloom/node --allow {allow}",
        "+ install -m 0644 /var/lib/fedloom/node/policy.toml /etc/fedloom/policy.toml",
        "+ systemctl enable fedloom-client.service",
    ):
        assert step in done.stdout
    assert "very-secret" not in done.stdout


def test_the_installers_way_of_joining_is_a_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x\n", encoding="utf-8")
    done = _install("--token-file", str(tmp_path / "secret"), "--allow", "a=/b", "--allow", "c", folder=tmp_path)
    (line,) = [each for each in done.stdout.splitlines() if " join " in each]
    context = parse_command(line.partition("/bin/fedloom ")[2].split(), {}, monkeypatch)
    assert context.params["allow"] == ("a=/b", "c") and context.params["join_token"] == "-"


@pytest.mark.parametrize(
    ("arguments", "machine", "message"),
    [
        ([], "x86_64", "--token-file: expected a file with a join token, got ''"),
        (["--token-file", "/no/such"], "x86_64", "--token-file: expected a file with a join token, got '/no/such'"),
        (["--token-file"], "x86_64", "--token-file needs a value"),
        (["--tokenfile", "a"], "x86_64", "unknown option --tokenfile"),
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
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 5
    assert "systemctl" not in done.stdout
