"""A server and a device on two machines: two network namespaces joined by a virtual cable."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import Shell
from support_paths import LINEAR

from fedloom.core.identity import JoinToken
from fedloom.testing.fleet import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and ip"),
]
SERVER, DEVICE = "10.177.0.1", "10.177.0.2"
EXPERIMENT = f"""
name = "far"
rounds = 200
clients = 4
cohort = 2
strategy = "fedavg"
[workload]
name = "{LINEAR}"
sleep_s = 0.05
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Machines:
    """Two of them, and the cable between."""

    def __init__(self, folder: Path) -> None:
        self._names = [f"fl{end}{os.getpid()}" for end in "sd"]
        for name in self._names:
            ip("netns", "add", name)
        cable = [f"v{name}" for name in self._names]
        ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for name, end, address in zip(self._names, cable, (SERVER, DEVICE), strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", end, "up")
        self._end = cable[1]
        self.server, self.device = (self._shell(folder / name[:3], name) for name in self._names)

    def cable(self, state: str) -> None:
        """Plug it in (`up`) or out (`down`)."""
        ip("-n", self._names[1], "link", "set", self._end, state)

    def close(self) -> None:
        for shell in (self.server, self.device):
            shell.close()
        for name in self._names:
            ip("netns", "del", name)

    def _shell(self, folder: Path, name: str) -> Shell:
        folder.mkdir()
        home = f"XDG_CONFIG_HOME={folder / 'config'}"
        return Shell(folder, ("ip", "netns", "exec", name, "env", home, f"FEDLOOM_CACHE={folder / 'cache'}"))


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with contextlib.closing(Machines(tmp_path)) as machines:
        yield machines


def test_two_commands_take_a_fresh_device_from_a_token_to_its_first_update(machines: Machines) -> None:
    server, device = machines.server, machines.device
    (server.folder / "x.toml").write_text(EXPERIMENT, encoding="utf-8")
    (device.folder / "data").mkdir()
    _, port, log = server.serve(7070, host=SERVER)
    as_admin = ("--identity", "state/admin")
    token = server.run("token", "create", "--name", "lab-7", "--ttl", "1h", "--uses", "1", "--label", "site=lab",
                       *as_admin).strip()  # fmt: skip
    ticket = JoinToken.decode(token)
    assert ticket.address == f"{SERVER}:{int(port) + 1}"

    def other(**parts: str) -> str:
        return JoinToken(**{"address": ticket.address, "authority_sha256": ticket.authority_sha256,
                            "secret": ticket.secret, **parts}).encode()  # fmt: skip

    assert "The token's secret was not sent" in device.run("join", other(authority_sha256="0" * 64), code=1)
    assert "start the server with --address" in device.run("join", other(address=f"{SERVER}:7999"), code=1)
    assert "is not a folder on this machine; the token was not used" in device.run(
        "join", token, "--allow", f"{LINEAR}=nowhere", code=2
    )
    run_id = server.run("submit", "x.toml", "--set", "fleet.labels.site=lab", *as_admin).split()[0]
    rounds = server.folder / "state" / "runs" / run_id / "rounds.jsonl"
    began = time.monotonic()
    device.run("join", token, "--allow", f"{LINEAR}=data")  # the first command
    client, client_log = device.start("client")  # and the second
    wait_until(lambda: rounds.exists() and rounds.read_text(encoding="utf-8").count("\n"), 60, "the first update")
    print(f"from token to the first round's update: {time.monotonic() - began:.1f} s")
    first = json.loads(rounds.read_text(encoding="utf-8").splitlines()[0])
    assert set(first["nodes"]) == {"lab-7"} and first["traffic"]["bytes_up"] > 0 and not first["failures"]

    machines.cable("down")
    time.sleep(5)
    machines.cable("up")
    done = rounds.read_text(encoding="utf-8").count("\n")
    wait_until(lambda: rounds.read_text(encoding="utf-8").count("\n") >= done + 3, 90, "going on over the cut cable")
    assert client.poll() is None

    server.run("node", "revoke", "lab-7", *as_admin)
    assert client.wait(60) == 1 and "'lab-7' was revoked" in client_log.read_text(encoding="utf-8")
    assert "was revoked; join with a new token" in device.run("client", code=1)
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    assert any(line["level"] == "warning" and "was revoked" in line["message"] for line in lines)
    again = server.run("token", "create", "--name", "lab-7", *as_admin).strip()
    assert "--identity" in device.run("join", again), "the old identity is in the usual folder"
