"""The example of three hospitals, as `make hospitals` runs it, and its compose file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "hospitals"
DONE = "every step did what it should"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_step_does_what_it_should(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "hospitals.py"), str(tmp_path / "hospitals")],
        capture_output=True, encoding="utf-8", timeout=560,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert DONE in done.stdout and "is client 1 again" in done.stdout


@pytest.fixture
def programs() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(programs: ExitStack, command: list[str], environment: dict[str, str], log: Path) -> None:
    """Start a program with its children in a group of its own, which ends with the test."""
    with log.open("wb") as file:
        program = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    programs.callback(program.wait)
    programs.callback(os.killpg, program.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_programs_of_the_containers_do_every_step_too(programs: ExitStack, tmp_path: Path) -> None:
    """Each as compose.yml starts it, in folders in place of volumes, on this machine's network."""
    for name in ("shared", "results"):
        (tmp_path / name).mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = {"HOSPITALS_SHARED": "shared", "HOSPITALS_STATE": "server/state", "HOSPITALS_RESULTS": "results"}
    common = {
        **os.environ,
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        **{key: str(tmp_path / at) for key, at in ours.items()},
    }
    machines = {name: {**common, "HOME": str(tmp_path / name)} for name in (*services("hospital"), "server", "steps")}
    for name in machines:
        (tmp_path / name).mkdir(exist_ok=True)
    program = [sys.executable, str(EXAMPLE / "in_container.py")]
    serve = ["fedloom", "serve", "--port", "0", "--state", str(tmp_path / "server" / "state")]
    started(programs, serve, machines["server"], tmp_path / "server.log")
    for name in services("hospital"):
        started(programs, [*program, name], machines[name], tmp_path / f"{name}.log")
    done = subprocess.run(program, env=machines["steps"], capture_output=True, encoding="utf-8", timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr
    assert DONE in done.stdout and "is client 1 again" in done.stdout


def services(kind: str) -> list[str]:
    """Return the services of a kind in the compose file: hospitals have a command of their own name."""
    found = yaml.safe_load((EXAMPLE / "compose.yml").read_text(encoding="utf-8"))["services"]
    return [name for name, service in found.items() if (service.get("command") == [name]) == (kind == "hospital")]


def test_the_compose_file_has_every_hospital_and_every_variable_that_its_programs_read() -> None:
    found = yaml.safe_load((EXAMPLE / "compose.yml").read_text(encoding="utf-8"))["services"]
    text = (EXAMPLE / "hospital_data.py").read_text(encoding="utf-8")
    (shares,) = re.findall(r"^HOSPITALS = (\{.*\})$", text, re.MULTILINE)
    assert services("hospital") == re.findall(r'"(\w+)"', shares) and services("other") == ["server", "steps"]
    program = (EXAMPLE / "in_container.py").read_text(encoding="utf-8")
    assert set(found["steps"]["environment"]) == set(re.findall(r'os\.environ\["(\w+)"\]', program))
    assert all(".:/hospitals:ro" in service["volumes"] for service in found.values())
