"""The compose file on Podman: images made without a registry, a project brought up, looked at and taken down.

The base image is a Debian made by debootstrap; it is kept for the next time. Prometheus' image is stood in for by
Debian's prometheus on that base. Grafana has no package there: its stand-in has Grafana's files mounted and does
nothing; the tests do what Grafana would, from inside it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from deploy_files import ROOT

PROJECT = "fedloom-test"
IMAGE, PROMETHEUS_IMAGE, GRAFANA_IMAGE = (
    f"localhost/fedloom-test-{name}:latest" for name in ("app", "prometheus", "grafana")
)
BASE_IMAGE = "localhost/fedloom-test-base:bookworm"
COMPOSE_PROGRAM = Path(sys.executable).parent / "podman-compose"
_CONFIG = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""
_STAND_INS = {
    PROMETHEUS_IMAGE: (
        f"FROM {BASE_IMAGE}\nRUN apt-get update && apt-get install --yes --no-install-recommends prometheus\n"
        'ENTRYPOINT ["prometheus"]\n'
    ),
    GRAFANA_IMAGE: f'FROM {IMAGE}\nENTRYPOINT ["sleep"]\nCMD ["infinity"]\n',
}
_BUILD = ("--isolation", "chroot", "--network", "host")
_PATIENCE_S = 240.0
"""For machines that have other things to do; how long it took is printed, not judged."""
T = TypeVar("T")


def missing() -> str:
    """Why containers cannot be run here; empty where they can."""
    lacking = [name for name in ("podman", "debootstrap") if shutil.which(name) is None]
    lacking += [] if COMPOSE_PROGRAM.exists() else ["podman-compose"]
    if lacking:
        return (
            f"needs {', '.join(lacking)} (Debian: podman runc netavark aardvark-dns debootstrap; pip: podman-compose)"
        )
    return "" if os.geteuid() == 0 else "needs root: debootstrap makes the base image"


class Podman:
    """Podman with a configuration of its own.

    Args:
        folder: where the configuration and build contexts are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        config = folder / "containers.conf"
        config.write_text(_CONFIG, encoding="utf-8")
        hidden = ("PIP_CERT", "PIP_FIND_LINKS")  # Podman prefers them to the build arguments of the same name
        self.environment = {key: value for key, value in os.environ.items() if key not in hidden}
        self.environment["CONTAINERS_CONF"] = str(config)

    def __call__(self, *arguments: str, check: bool = True, timeout_s: float = 120) -> str:
        return _run(["podman", *arguments], self.environment, check=check, timeout_s=timeout_s)

    def build_all(self) -> float:
        """Make every image; returns the seconds it took. The images these replace are removed."""
        begin = time.monotonic()
        replaced = self._ids()
        self._make_base()
        context, options = str(ROOT), ["--format", "docker", *_BUILD]
        arguments = {"BASE_IMAGE": BASE_IMAGE, **self._pip(options)}
        for name, value in arguments.items():
            options += ["--build-arg", f"{name}={value}"]
        self("build", *options, "-f", f"{ROOT}/deploy/Dockerfile", "-t", IMAGE, context, timeout_s=3000)
        for image, text in _STAND_INS.items():
            recipe = self._folder / "Dockerfile"
            recipe.write_text(text, encoding="utf-8")
            self("build", *_BUILD, "-f", str(recipe), "-t", image, str(self._folder), timeout_s=600)
        for old in replaced - self._ids():
            self("rmi", "--no-prune", old, check=False)  # the layers below are the next build's cache
        return time.monotonic() - begin

    def _ids(self) -> set[str]:
        """Digests of the images that have the names of the tests."""
        return set(self("image", "ls", "--quiet", "--no-trunc", "localhost/fedloom-test-*").split())

    def _make_base(self) -> None:
        if BASE_IMAGE in self("image", "ls", "--format", "{{.Repository}}:{{.Tag}}"):
            return
        root = self._folder / "base"
        _run(["debootstrap", "--variant=minbase", "bookworm", str(root)], self.environment, timeout_s=900)
        archive = self._folder / "base.tar"
        _run(["tar", "-C", str(root), "-cf", str(archive), "."], self.environment, timeout_s=300)
        self("import", str(archive), BASE_IMAGE, timeout_s=300)
        archive.unlink()
        shutil.rmtree(root)

    def _pip(self, options: list[str]) -> dict[str, str]:
        """This machine's own pip settings as build arguments, and what they name as mounts."""
        arguments = {}
        bundle, wheels = os.environ.get("PIP_CERT", ""), os.environ.get("PIP_FIND_LINKS", "")
        if bundle:
            options += ["--volume", f"{bundle}:/run/pip/ca.crt:ro"]
            arguments["PIP_CERT"] = "/run/pip/ca.crt"
        if Path(wheels).is_dir() and list(Path(wheels).glob("torch-*+cpu-*.whl")):
            options += ["--volume", f"{wheels}:/run/pip/wheels:ro"]
            arguments |= {"PIP_FIND_LINKS": "/run/pip/wheels", "TORCH_INDEX": ""}
        return arguments


class Stack:
    """The project's containers, volumes and network; none are left when it is closed.

    Args:
        podman: runs the commands.
        profiles: which services there are.
        variables: of the compose file.
    """

    def __init__(self, podman: Podman, profiles: tuple[str, ...], **variables: str) -> None:
        self.podman, self.profiles = podman, profiles
        images = {"FEDLOOM_IMAGE": IMAGE, "PROMETHEUS_IMAGE": PROMETHEUS_IMAGE, "GRAFANA_IMAGE": GRAFANA_IMAGE}
        self._environment = {**podman.environment, **images, **variables}
        self._volumes_before: set[str] = set()

    def __enter__(self) -> Stack:
        self.close()
        self._volumes_before = self._volumes()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take everything down, and remove the volumes, those without a name among them."""
        if ids := self._all("ps", "--all").split():
            self.podman("rm", "--force", "--depend", "--volumes", "--time", "5", *ids, check=False)
        self.compose("down", "--volumes", "--timeout", "5", check=False)

    def compose(self, *arguments: str, check: bool = True) -> str:
        named = [word for profile in self.profiles for word in ("--profile", profile)]
        command = [str(COMPOSE_PROGRAM), "--project-name", PROJECT, "--file", f"{ROOT}/docker-compose.yml", *named]
        return _run([*command, *arguments], self._environment, check=check, timeout_s=300)

    def up(self) -> None:
        """Start every service of the profiles."""
        self.compose("up", "--detach", "--no-build")

    def containers(self, service: str) -> list[dict[str, Any]]:
        """What Podman knows of a service's containers, by name."""
        label = f"label=com.docker.compose.service={service}"
        project = f"label=com.docker.compose.project={PROJECT}"
        ids = self.podman("ps", "--all", "--quiet", "--filter", label, "--filter", project).split()
        found = json.loads(self.podman("inspect", *ids)) if ids else []
        return sorted(found, key=lambda each: str(each["Name"]))

    def execute(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command in a service's first container."""
        (container, *_) = self.containers(service)
        return self.podman("exec", container["Name"], *command, check=check)

    def leftovers(self) -> str:
        """Containers and networks of the project, and volumes that were not there before, one a line."""
        volumes = self._volumes() - self._volumes_before
        return self._all("ps", "--all") + self._all("network", "ls") + "\n".join(sorted(volumes))

    def _all(self, *kind: str) -> str:
        return self.podman(*kind, "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}")

    def _volumes(self) -> set[str]:
        return set(self.podman("volume", "ls", "--quiet").split())


def until(ready: Callable[[], T | None], what: str) -> T:
    """The first true value; fails where none comes in time. Containers tell nothing by themselves, so it asks."""
    give_up = time.monotonic() + _PATIENCE_S
    while not (value := ready()):
        if time.monotonic() > give_up:
            raise AssertionError(f"{what}: not within {_PATIENCE_S:g} s")
        time.sleep(0.5)
    return value


def _run(command: list[str], environment: Mapping[str, str], *, check: bool = True, timeout_s: float) -> str:
    done = subprocess.run(
        command, env=dict(environment), capture_output=True, encoding="utf-8", timeout=timeout_s, check=False, cwd=ROOT
    )
    if check and done.returncode:
        reported = (done.stdout + done.stderr)[-4000:]
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{reported}")
    return done.stdout
