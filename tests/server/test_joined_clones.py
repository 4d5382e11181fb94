"""Joined nodes in processes of their own, and copies of their identities, with files of any age, in any order."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from members import Members, members
from shell import Shell

from fedloom.client.leftovers import descendants
from fedloom.core.identity import Identity
from fedloom.testing.fleet import wait_until

YEARS = {"1970": 0.0, "2040": 2_208_988_800.0, "as they are": None}
"""Times of a copy's files."""


class Twins:
    """A node's identity and a copy of it, and their agents."""

    def __init__(self, folder: Path, fleet: Members, file_time: float | None) -> None:
        self.fleet, self._shell = fleet, Shell(folder)
        original = fleet.joined("twin")
        (original.folder / "policy.toml").write_text("[workloads.x]\n", encoding="utf-8")
        self.folders = {"original": original.folder, "copy": folder / "copy"}
        shutil.copytree(original.folder, folder / "copy")
        for file in (folder / "copy").iterdir():
            if file_time is not None:
                os.utime(file, (file_time, file_time))
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.logs: dict[str, Path] = {}

    def start(self, which: str) -> None:
        self.running[which], self.logs[which] = self._shell.start("client", "--identity", str(self.folders[which]))

    def stop(self, which: str) -> None:
        self.running[which].send_signal(signal.SIGTERM)
        assert self.running.pop(which).wait(60) == 0, self.logs[which].read_text(encoding="utf-8")

    def online(self, which: str, timeout_s: float = 30.0) -> None:
        """Wait until this one's agent is the connected one."""
        program = self.running[which].pid
        wait_until(lambda: self._connected() in (program, *descendants(program)), timeout_s, f"the {which} connected")

    def waiting(self, which: str) -> None:
        """Wait until this one has been refused because the other one is connected."""
        wait_until(
            lambda: "it waits until the first one" in self.logs[which].read_text(encoding="utf-8"), 30, "a refusal"
        )

    def asked(self, which: str) -> None:
        """Wait until this one has asked the server about its certificate."""
        wait_until(lambda: Identity.load(self.folders[which]).receipt().attempted is not None, 60, "an attempt")

    def certificates(self) -> int:
        rows = self.fleet.security.registry._database.execute("select count(*) from certificates where member = 'twin'")
        return int(rows.fetchone()[0])

    def close(self) -> None:
        self._shell.close()

    def _connected(self) -> int:
        node = self.fleet.server.coordinator.nodes().get("twin")
        return int(str(node.hello.facts["pid"])) if node is not None and node.online else 0


@contextlib.contextmanager
def twins(folder: Path, file_time: float | None, certificate_days: float = 30.0) -> Iterator[Twins]:
    with (
        members(folder / "server", certificate_days=certificate_days) as fleet,
        contextlib.closing(Twins(folder, fleet, file_time)) as made,
    ):
        yield made


@pytest.mark.parametrize(
    ("year", "first"),
    [
        ("2040", "original"),
        ("2040", "copy"),
        pytest.param("1970", "original", marks=pytest.mark.slow),
        pytest.param("1970", "copy", marks=pytest.mark.slow),
        pytest.param("as they are", "copy", marks=pytest.mark.slow),
    ],
)
def test_the_newcomer_waits_nothing_is_renewed_and_there_is_one_warning(
    tmp_path: Path, year: str, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    second = "copy" if first == "original" else "original"
    with caplog.at_level(logging.WARNING), twins(tmp_path, YEARS[year]) as pair:
        pair.start(first)
        pair.online(first)
        pair.start(second)
        pair.waiting(second)
        pair.asked("copy")
        assert pair.certificates() == 1, "by the server's clock it is fresh"
        pair.stop(first)
        pair.online(second)
        pair.start(first)
        pair.waiting(first)
        pair.stop(second)
        pair.online(first)
        pair.stop(first)
        assert pair.certificates() == 1
    (warning,) = (line for line in caplog.messages if "copies of one identity" in line)
    assert warning.count("127.0.0.1") == 2


def test_an_agent_that_starts_again_and_again_asks_once(tmp_path: Path) -> None:
    with twins(tmp_path, YEARS["2040"]) as pair:
        attempted = set()
        for _ in range(3):
            pair.start("copy")
            pair.online("copy")
            pair.asked("copy")
            attempted.add(json.loads((pair.folders["copy"] / "receipt.json").read_text("utf-8"))["attempted"]["uptime"])
            pair.running["copy"].kill()
            pair.running.pop("copy").wait()
        assert len(attempted) == 1 and pair.certificates() == 1


@pytest.mark.slow
def test_a_copy_that_renews_when_it_is_due_does_not_end_the_original_which_ends_the_copy(tmp_path: Path) -> None:
    """Certificates of 30 s are due after 20 s; meanwhile the original is switched off."""
    with twins(tmp_path, YEARS["2040"], certificate_days=30.0 / 86400) as pair:
        joined = time.monotonic()
        pair.start("original")
        pair.online("original")
        pair.stop("original")
        time.sleep(max(0.0, joined + 20.5 - time.monotonic()))
        pair.start("copy")
        pair.online("copy")
        wait_until(lambda: pair.certificates() == 2, 6, "the copy's renewal")
        pair.start("original")
        pair.online("original", 20)
        assert time.monotonic() < joined + 45
        assert pair.running["copy"].wait(60) == 1
        assert "If this is a copy or an old backup of its identity" in pair.logs["copy"].read_text(encoding="utf-8")
        time.sleep(max(0.0, joined + 45 - time.monotonic()))
        assert pair.running["original"].poll() is None, "long after its first certificate has expired"
        pair.online("original")
        pair.stop("original")
