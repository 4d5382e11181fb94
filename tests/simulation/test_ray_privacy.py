"""A Ray that fedloom starts is its user's own: strangers are refused, nobody else enters its folder."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import tomli_w

from fedloom.core.config import Experiment
from fedloom.simulation.ray_privacy import (
    DECIDED,
    MODE,
    OWN_TOKEN,
    TOKEN,
    make_folder,
    remove_folder,
    set_up_variables,
    token_variables,
)
from fedloom.testing.fleet import wait_until

Make = Callable[..., Experiment]

STRANGER = """
import sys
from ray._raylet import GcsClient
try:
    print("in", len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10)))
except BaseException as exc:
    print("refused", type(exc).__name__, str(exc)[:300])
"""
"""What `ray.init` and `ray start` do first: ask the cluster's head who it is and which nodes it has."""


@pytest.fixture(autouse=True)
def _no_token_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the token that tests in this process have for Ray: here programs decide for themselves."""
    for name in (MODE, TOKEN, OWN_TOKEN, DECIDED):
        monkeypatch.delenv(name, raising=False)


def test_a_process_that_joins_a_cluster_asks_for_no_token_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    joins = set_up_variables({}, tmp_path, joins=True)
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & joins.keys()
    assert set_up_variables(joins, tmp_path, joins=False) == {}, "what was asked first decides"
    alone = set_up_variables({}, tmp_path, joins=False)
    assert alone["RAY_AUTH_MODE"] == "token" and len(alone["RAY_AUTH_TOKEN"]) == 64
    assert set_up_variables({"FEDLOOM_RAY_SET_UP": "of a parent"}, tmp_path, joins=False).keys() == alone.keys()


@pytest.mark.parametrize(
    ("environment", "file", "mode", "kept"),
    [
        ({}, False, "token", None),
        ({}, True, "token", None),  # Ray itself would not have looked at the file
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "theirs"}, False, "token", "theirs"),
        ({"RAY_AUTH_MODE": ""}, False, "token", None),
        ({"RAY_AUTH_MODE": "token"}, False, "token", None),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "theirs"}, False, "token", "theirs"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/a/file"}, False, "token", ""),
        ({"RAY_AUTH_MODE": "token"}, True, "token", ""),
        ({"RAY_AUTH_MODE": "k8s"}, True, "k8s", ""),
    ],
)
def test_there_is_always_a_token(
    tmp_path: Path, environment: Mapping[str, str], file: bool, mode: str, kept: str | None
) -> None:
    if file:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("of the user", encoding="utf-8")
    found = {**environment, **token_variables(environment, tmp_path)}
    assert found["RAY_AUTH_MODE"] == mode
    token = found.get("RAY_AUTH_TOKEN", "")
    assert len(token) == 64 if kept is None else token == kept
    assert token_variables(environment, tmp_path).get("RAY_AUTH_TOKEN", "x") != token, "each process has its own"


def test_ray_imported_before_without_tokens_is_not_started() -> None:
    code = (
        "import ray\n"
        "from fedloom.core.config import RuntimeSettings\n"
        "from fedloom.core.errors import UsageError\n"
        "from fedloom.simulation.ray_runtime import RayRuntime\n"
        "try:\n    RayRuntime(RuntimeSettings(workers=1)).host()\n"
        "except UsageError as exc:\n    print(exc)\n"
    )
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, encoding="utf-8")
    assert "Ray was imported before fedloom, with its token authentication off" in ended.stdout, ended.stderr


@pytest.fixture
def namespace() -> Iterator[tuple[list[str], str]]:
    """How to run a command in another network namespace, and this machine's address from there."""
    name, cable = f"fr{os.getpid()}", (f"va{os.getpid()}", f"vb{os.getpid()}")

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("making a network namespace takes `ip` and root")
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as exc:
        pytest.skip(f"no network namespace can be made here: {exc.stderr.decode()}")
    try:
        ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        ip("link", "set", cable[1], "netns", name)
        ip("addr", "add", "10.213.7.1/30", "dev", cable[0])
        ip("link", "set", cable[0], "up")
        ip("-n", name, "addr", "add", "10.213.7.2/30", "dev", cable[1])
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", cable[1], "up")
        yield ["ip", "netns", "exec", name], "10.213.7.1"
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", cable[0])
        ip("netns", "del", name)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path, which Ray's sockets need."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        yield Path(folder)


@pytest.mark.slow
def test_from_another_machine_nobody_gets_in_without_the_token(
    namespace: tuple[list[str], str], linear: Make, tmp_path: Path, short_folder: Path
) -> None:
    before, address = namespace
    slow = linear(rounds=400, workload={"sleep_s": 0.1})
    (tmp_path / "x.toml").write_text(tomli_w.dumps(slow.to_dict()), encoding="utf-8")
    known = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test" * 4, "TMPDIR": str(short_folder)}
    command = [sys.executable, "-m", "fedloom", "run", "x.toml", "--runtime", "ray", "--workers", "1"]
    running = subprocess.Popen(command, env=known, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        port = wait_until(lambda: _gcs_port(running.pid), 60, "Ray's head")
        wait_until(lambda: "in" in _ask(f"127.0.0.1:{port}", known), 60, "its answer to its own user")
        (folder,) = short_folder.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700 and (folder / "r" / "session_latest").exists()
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        for stranger in (plain, {**known, "RAY_AUTH_TOKEN": "guessed" * 8}):
            said = _ask(f"{address}:{port}", stranger, before)
            assert said.startswith("refused AuthenticationError"), said
        assert _ask(f"{address}:{port}", known, before).startswith("in "), "it is the token that keeps others out"
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(60)
    assert not list(short_folder.iterdir())


def _gcs_port(pid: int) -> str:
    """The port of the head that a process has started."""
    reported = subprocess.run(["ps", "-eo", "ppid,args", "-ww"], capture_output=True, encoding="utf-8").stdout
    found = re.search(rf"^ *{pid} .*gcs_server.*--gcs_server_port=(\d+)", reported, re.MULTILINE)
    if found is not None and found[1] != "0":
        return found[1]
    listening = subprocess.run(["ss", "-ltnp"], capture_output=True, encoding="utf-8").stdout
    children = re.findall(rf"^ *(\d+) +{pid} .*gcs_server", _processes(), re.MULTILINE)
    for child in children:
        if (port := re.search(rf":(\d+) .*\bpid={child},", listening)) is not None:
            return port[1]
    return ""


def _processes() -> str:
    return subprocess.run(["ps", "-eo", "pid,ppid,args", "-ww"], capture_output=True, encoding="utf-8").stdout


def _ask(address: str, environment: Mapping[str, str], before: list[str] | None = None) -> str:
    command = [*(before or []), sys.executable, "-W", "ignore", "-c", STRANGER, address]
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=60).stdout


def test_a_folder_whose_path_is_too_long_for_sockets_is_passed_over(tmp_path: Path) -> None:
    long, short = tmp_path / ("x" * 60), Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    long.mkdir()
    try:
        for environment, root in (
            ({"RAY_TMPDIR": str(long), "TMPDIR": str(short)}, short),
            ({"TMPDIR": str(long)}, Path("/tmp")),
        ):
            made = make_folder(environment)
            try:
                assert made.parent.parent == root
                sockets = "session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
                assert len(str(made / sockets)) <= 107, "what Linux allows"
            finally:
                remove_folder(made)
    finally:
        short.rmdir()
