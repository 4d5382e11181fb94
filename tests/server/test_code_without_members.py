"""Code on a server without members and its agents: named by whoever has the token, found by its name and content."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from shell import Shell

from fedloom import api
from fedloom.core.code_names import CodeName
from fedloom.testing.fleet import wait_until

ROOT = Path(__file__).parents[2]
TOML = """
name = "{name}"
rounds = 2
clients = 4
strategy = {{ name = "./clipped_steps.py", limit = 0.5 }}
[workload]
name = "image_classification"
model = {{ name = "mlp", hidden = [8] }}
data = {{ source = "digits" }}
"""


class Somebody:
    """A user of the machine: a home of their own, and commands in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._env = {**os.environ, "FEDLOOM_CACHE": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state-home")}
        self._started: list[subprocess.Popen[str]] = []

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command, run to its end; stdout and stderr together."""
        return subprocess.run(
            self._command(arguments), env=self._env, cwd=self.folder, encoding="utf-8", timeout=90,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip

    def agent(self, name: str, server: str, *options: str) -> Path:
        """Start an agent in a folder of its own; returns that folder's log."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        log = place / "log"
        with log.open("w", encoding="utf-8") as file:
            arguments = ("client", "--server", server, "--name", name, *options)
            self._started.append(
                subprocess.Popen(
                    self._command(arguments), env=self._env, cwd=place, stdout=file, stderr=file, encoding="utf-8"
                )
            )
        return log

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "fedloom", *arguments]


@pytest.fixture
def people(tmp_path: Path) -> Iterator[Mapping[str, Somebody]]:
    made = {name: Somebody(tmp_path / name) for name in ("ann", "bob")}
    yield made
    for each in made.values():
        each.close()


@pytest.fixture
def server(
    people: Mapping[str, Somebody], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Path]]:
    """Ann's server without members; its address and state folder."""
    monkeypatch.setenv("FEDLOOM_CACHE", str(people["ann"].folder / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(people["ann"].folder / "state-home"))
    (tmp_path / "server").mkdir()
    with contextlib.closing(Shell(tmp_path / "server")) as shell:
        _, port, _ = shell.serve(0, "--insecure")
        yield f"127.0.0.1:{port}", tmp_path / "server" / "state"


def done(state: Path, run: str) -> dict[str, str | None]:
    folder = state / "runs" / run
    wait_until((folder / "summary.json").exists, 90, f"the end of {run}")
    summary: dict[str, str | None] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "done", summary
    return summary


def listed(who: Somebody, server: str, node: str, *options: str) -> None:
    wait_until(lambda: node in who.run("nodes", "--server", server, *options).stdout, 60, f"agent {node}")


@pytest.mark.slow
def test_agents_find_code_by_its_content_and_take_no_other(
    people: Mapping[str, Somebody], server: tuple[str, Path]
) -> None:
    address, state = server
    ann, bob, given = people["ann"], people["bob"], ("--token-file", str(state / "token"))
    shutil.copy(ROOT / "examples" / "clipped_steps.py", ann.folder)
    for name in ("first", "second", "third"):
        (ann.folder / f"{name}.toml").write_text(TOML.format(name=name), encoding="utf-8")
    code = CodeName.of(ann.folder / "clipped_steps.py")

    (bob.folder / "other").mkdir()
    (bob.folder / "other" / "clipped_steps.py").write_text("raise SystemExit('another content')\n", encoding="utf-8")
    log = bob.agent("other", address, *given)
    listed(ann, address, "other")
    said = ann.run("submit", "first.toml", "--server", address)
    assert said.returncode == 1 and "is not listed here" in said.stdout and code.sha256 in said.stdout, said.stdout
    assert not list((state / "runs").glob("*")), "nothing was queued"
    assert "another content" not in log.read_text(encoding="utf-8")

    (bob.folder / "same").mkdir()
    shutil.copy(ROOT / "examples" / "clipped_steps.py", bob.folder / "same")
    bob.agent("same", address, *given)
    listed(ann, address, "same")
    run = ann.run("submit", "second.toml", "--server", address).stdout.split()[-1]
    want = api.run(api.load(str(ann.folder / "second.toml"), ["runtime.name=inline"]), keep=False)
    assert done(state, run)["model_sha256"] == want.summary.model_sha256
    assert (bob.folder / "cache" / "code" / code.sha256 / "clipped_steps.py").is_file(), (
        "bob's own copy, by its content"
    )
    ann.agent("own", address)
    listed(ann, address, "own")
    assert done(state, ann.run("submit", "third.toml", "--server", address).stdout.split()[-1])["status"] == "done"
    assert (ann.folder / "cache" / "code" / code.sha256 / "clipped_steps.py").is_file(), (
        "the server's user finds it there"
    )


@pytest.mark.slow
def test_commands_of_the_servers_user_find_its_token_and_others_need_the_file(
    people: Mapping[str, Somebody], server: tuple[str, Path]
) -> None:
    address, state = server
    ann, bob = people["ann"], people["bob"]
    assert (state / "token").stat().st_mode & 0o777 == 0o600
    for command in (("runs",), ("nodes",), ("submit", "x.toml"), ("logs", "r"), ("fetch", "r"), ("delete", "r")):
        (bob.folder / "x.toml").write_text(TOML.format(name="x"), encoding="utf-8")
        shutil.copy(ROOT / "examples" / "clipped_steps.py", bob.folder)
        refused = bob.run(*command, "--server", address)
        assert refused.returncode != 0 and "token" in refused.stdout, (command, refused.stdout)
    assert not list((state / "runs").glob("*"))
    log = bob.agent("none", address)
    wait_until(lambda: "token" in log.read_text(encoding="utf-8"), 60, "the refusal")
    assert ann.run("runs", "--server", address).returncode == 0
    ann.agent("found", address)
    listed(ann, address, "found")
    assert bob.run("runs", "--server", address, "--token-file", str(state / "token")).returncode == 0
    wrong = bob.folder / "wrong"
    wrong.write_text("wrong\n", encoding="utf-8")
    assert bob.run("runs", "--server", address, "--token-file", str(wrong)).returncode != 0
