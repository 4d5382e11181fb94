"""Ray is started here unless an address was given: leftovers of other clusters change nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import tomli_w

from fedloom import api
from fedloom.core.config import Experiment, RuntimeSettings
from fedloom.core.errors import ConfigError, ServerUnreachable
from fedloom.simulation.ray_address import ray_address
from fedloom.simulation.ray_privacy import DECIDED, MODE, OWN_TOKEN, TOKEN

Make = Callable[..., Experiment]


@pytest.fixture(autouse=True)
def _no_token_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the token that tests in this process have for Ray: here programs decide for themselves."""
    for name in (MODE, TOKEN, OWN_TOKEN, DECIDED):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("setting", "variable", "address", "source"),
    [
        (None, None, "local", ""),
        (None, "", "local", ""),
        (None, "10.0.0.2:6379", "10.0.0.2:6379", "RAY_ADDRESS"),
        (None, "auto", "auto", "RAY_ADDRESS"),
        (None, "local", "local", "RAY_ADDRESS"),
        ("auto", None, "auto", "runtime.ray_address"),
        ("auto", "10.0.0.2:6379", "10.0.0.2:6379", "RAY_ADDRESS"),
        ("local", "10.0.0.2:6379", "local", "runtime.ray_address"),
        ("[::1]:6379", "10.0.0.2:6379", "[::1]:6379", "runtime.ray_address"),
        ("ray://head:10001", None, "ray://head:10001", "runtime.ray_address"),
    ],
)
def test_the_setting_comes_before_the_variable(
    setting: str | None, variable: str | None, address: str, source: str
) -> None:
    found = ray_address(setting, {} if variable is None else {"RAY_ADDRESS": variable})
    assert (found.address, found.source) == (address, source)


@pytest.mark.parametrize("wrong", ["head", ":6379", "head:", "head:70000", "http://head:8265", "head:6379/x"])
def test_a_malformed_address_is_named_with_its_source(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS: expected .* got '.*', given by the environment variable"):
        ray_address(None, {"RAY_ADDRESS": wrong})
    with pytest.raises(ConfigError, match=r"given by --ray-address or runtime\.ray_address"):
        ray_address(wrong, {})


@pytest.fixture
def stale() -> Iterator[Path]:
    """A folder of Ray's that names a cluster which is gone. Ray's sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{closed_port()}", encoding="utf-8")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def run_with(experiment: Experiment, environment: Mapping[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """`fedloom run` in a process of its own, with Ray."""
    Path("it.toml").write_text(tomli_w.dumps(experiment.to_dict()), encoding="utf-8")
    command = [sys.executable, "-m", "fedloom", "run", "it.toml", "--runtime", "ray", "--workers", "1", "--json"]
    return subprocess.run(
        [*command, *options],
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def test_a_cluster_that_is_gone_is_not_joined(linear: Make, stale: Path) -> None:
    ran = run_with(linear(), {"RAY_TMPDIR": str(stale)})
    assert ran.returncode == 0, ran.stderr
    assert "on this machine" in ran.stderr
    summary = json.loads(ran.stdout.splitlines()[-1])
    assert summary["model_sha256"] == api.run(linear(), keep=False).summary.model_sha256


@pytest.mark.parametrize("by_option", [True, False])
def test_an_address_where_nothing_listens_is_named_with_its_source(linear: Make, by_option: bool) -> None:
    address = f"127.0.0.1:{closed_port()}"
    options = ("--ray-address", address) if by_option else ()
    ran = run_with(linear(), {} if by_option else {"RAY_ADDRESS": address}, *options)
    source = "--ray-address or runtime.ray_address" if by_option else "the environment variable RAY_ADDRESS"
    assert ran.returncode == 1
    assert f"cannot join a Ray cluster at {address}, given by {source}: " in " ".join(ran.stderr.split())
    assert "internal error" not in ran.stderr


def test_auto_names_the_cluster_that_is_gone(stale: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    from fedloom.simulation import ray_runtime

    monkeypatch.setenv("RAY_TMPDIR", str(stale))
    monkeypatch.setattr(services, "find_gcs_addresses", set)  # whatever else runs on this machine
    with pytest.raises(
        ServerUnreachable, match=r"cannot join a Ray cluster at auto \([\d.]+:\d+ here\), given by --ray-ad"
    ):
        ray_runtime.RayRuntime(RuntimeSettings(ray_address="auto")).host()


def test_auto_without_any_cluster_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    from fedloom.simulation import ray_runtime

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    with pytest.raises(
        ServerUnreachable, match=r"auto, given by the environment variable RAY_ADDRESS: ConnectionError: Could"
    ):
        ray_runtime.RayRuntime(RuntimeSettings()).host()


def test_a_folder_ray_cannot_use_is_an_error_of_usage(linear: Make) -> None:
    ran = run_with(linear(), {"RAY_TMPDIR": "/proc/nowhere"})
    assert ran.returncode == 2
    assert "Ray cannot be started on this machine: " in ran.stderr and "RAY_TMPDIR" in ran.stderr


@pytest.mark.slow
def test_something_else_that_listens_is_no_cluster(linear: Make) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        ran = run_with(linear(), {"RAY_ADDRESS": address})
    assert ran.returncode == 1
    assert f"cannot join a Ray cluster at {address}, given by the environment variable RAY_ADDRESS" in ran.stderr


CLUSTER = """
import ray, sys
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def running() -> Iterator[str]:
    """The address of a cluster of one CPU that another process runs."""
    command = [sys.executable, "-W", "ignore", "-c", CLUSTER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


def test_the_variable_names_the_cluster_to_join(linear: Make, running: str) -> None:
    ran = run_with(linear(), {"RAY_ADDRESS": running})
    assert ran.returncode == 0, ran.stderr
    assert f"Ray cluster at {running} (RAY_ADDRESS)" in ran.stderr
    summary = json.loads(ran.stdout.splitlines()[-1])
    assert summary["model_sha256"] == api.run(linear(), keep=False).summary.model_sha256
