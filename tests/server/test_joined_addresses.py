"""A joined node in a process of its own, behind proxies, of a server on IPv4 or IPv6 behind forwarded ports."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from connect_proxy import ConnectProxy, forwarded
from members import Members, never
from shell import Shell

from fedloom.core.addresses import DeviceAddress
from fedloom.core.identity import Identity, JoinToken
from fedloom.server.access.membership import Membership, enroll_administrator, open_security
from fedloom.server.run_queue import RunQueue
from fedloom.testing.fleet import quick_server, wait_until

WRITTEN = {"::1": "[::1]", "127.0.0.1": "127.0.0.1"}


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with contextlib.closing(Shell(tmp_path)) as shell:
        yield shell


def listener(host: str) -> socket.socket:
    try:
        return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as exc:
        pytest.skip(f"this machine has no {host}: {exc}")


@contextlib.contextmanager
def served(folder: Path, host: str) -> Iterator[tuple[Members, tuple[int, int]]]:
    """A server and its ports as devices see them."""
    state, outer = folder / "state", [listener(host) for _ in range(2)]
    ports = (outer[0].getsockname()[1], outer[1].getsockname()[1])
    seen = DeviceAddress.parse(f"{WRITTEN[host]}:{ports[0]},{ports[1]}")
    with (
        quick_server(shared_memory=False) as server,
        contextlib.closing(RunQueue(state, never)) as runs,
        open_security(state, host, Membership(enroll_port=0, address=seen)) as security,
    ):
        port = server.listen(host, runs=runs, security=security)
        enroll_administrator(security, state / "admin", host, port)
        with forwarded(outer[0], host, port), forwarded(outer[1], host, server.enroll_port):
            yield Members(folder, server, runs, security, Identity.load(state / "admin")), ports


@pytest.mark.parametrize(
    ("host", "second"),
    [
        ("::1", True),
        pytest.param("::1", False, marks=pytest.mark.slow),
        pytest.param("127.0.0.1", True, marks=pytest.mark.slow),
    ],
)
def test_a_node_joins_and_connects_through_proxies_and_forwarded_ports(
    shell: Shell, tmp_path: Path, host: str, second: bool
) -> None:
    """The proxy that `join` is given is used by `client`, unless it is given another one."""
    with (
        served(tmp_path, host) as (fleet, (member_port, join_port)),
        contextlib.closing(ConnectProxy()) as joining,
        contextlib.closing(ConnectProxy()) as other,
    ):
        token = fleet.token("lab-7")
        assert JoinToken.decode(token).address == f"{WRITTEN[host]}:{join_port}"
        shell.run("join", token, "--identity", "node", "--proxy", joining.url)
        assert set(joining.targets) == {f"{WRITTEN[host]}:{join_port}"}
        shell.start("client", "--identity", "node", *(("--proxy", other.url) if second else ()))
        coordinator = fleet.server.coordinator
        wait_until(lambda: (node := coordinator.nodes().get("lab-7")) and node.online, 30, "the node to be connected")
        used = other if second else joining
        assert f"{WRITTEN[host]}:{member_port}" in used.targets and bool(other.targets) == second
