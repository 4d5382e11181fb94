"""Nodes behind an HTTP proxy: they join, work and renew through its tunnels, and nothing of theirs passes beside it."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from members import Members, members

from fedloom.client.control import ControlClient
from fedloom.client.enroll import join, renew
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.client.proxy import checked, proxy_for
from fedloom.core.errors import ServerUnreachable, UsageError
from fedloom.core.identity import Identity
from fedloom.core.messages import Heartbeat
from fedloom.testing.by_hand import ManualAgent
from fedloom.testing.fleet import TOKEN, quick_server, wait_until


class ConnectProxy:
    """A proxy that connects, or replies with a status, and records the requests.

    Args:
        status: of every reply.
    """

    def __init__(self, status: str = "200 OK") -> None:
        self._status, self.requests = status, list[bytes]()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._tunnel, args=(near,), daemon=True).start()

    def _tunnel(self, near: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += near.recv(1)
        self.requests.append(request)
        near.sendall(f"HTTP/1.1 {self._status}\r\n\r\n".encode())
        if not self._status.startswith("200"):
            near.close()
            return
        host, _, port = request.split(b" ")[1].decode().rpartition(":")
        far = socket.create_connection((host, int(port)))
        threading.Thread(target=_copy, args=(near, far), daemon=True).start()
        _copy(far, near)

    @property
    def targets(self) -> list[str]:
        """The addresses asked for."""
        return [request.split(b" ")[1].decode() for request in self.requests]


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        target.close()


@pytest.fixture
def proxy() -> Iterator[ConnectProxy]:
    made = ConnectProxy()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with members(tmp_path_factory.mktemp("members")) as made:
        yield made


def test_a_node_joins_works_and_renews_through_a_proxy(fleet: Members, proxy: ConnectProxy, tmp_path: Path) -> None:
    url = proxy.url.replace("//", "//me:s%40cret@")
    identity = join(fleet.token("inside"), tmp_path / "node", url)
    joining = list(proxy.targets)
    assert len(joining) >= 2 and fleet.address not in joining, "its certificate, then the call"
    assert Identity.load(identity.folder).proxy == url
    fresh = renew(identity)
    assert fresh.certificate != identity.certificate and fleet.address in proxy.targets
    hand = ManualAgent(GrpcChannel(fleet.address, identity=lambda: fresh), "inside")
    proxy.requests.clear()
    hand.open()
    hand.channel.send(Heartbeat())
    wait_until(lambda: fleet.server.coordinator.nodes()["inside"].online)
    hand.channel.close()
    assert proxy.targets == [fleet.address]
    credentials = base64.b64encode(b"me:s@cret")
    assert all(b"Basic " + credentials in request for request in proxy.requests)


def test_a_server_without_members_is_reached_through_one(proxy: ConnectProxy) -> None:
    with quick_server(shared_memory=False) as server:
        address = f"127.0.0.1:{server.listen(token=TOKEN)}"
        hand = ManualAgent(GrpcChannel(address, TOKEN, proxy=proxy.url), "n")
        hand.open()
        hand.channel.close()
        direct = ManualAgent(GrpcChannel(address, TOKEN), "m")
        direct.open()
        direct.channel.close()
    assert proxy.targets == [address]


def test_what_a_proxy_refuses_is_said_with_its_words(fleet: Members, tmp_path: Path) -> None:
    refusing = ConnectProxy("407 Proxy Authentication Required")
    token = fleet.token("refused")
    with pytest.raises(ServerUnreachable, match=r"the proxy at 127.0.0.1:\d+ does not connect to .*407 Proxy"):
        join(token, tmp_path / "node", refusing.url)
    refusing.close()
    assert join(token, tmp_path / "node", "none").name == "refused", "the token was not used"


def test_people_call_through_the_proxy_of_their_identity(fleet: Members, proxy: ConnectProxy, tmp_path: Path) -> None:
    identity = join(fleet.token("person", role="user"), tmp_path / "user", proxy.url)
    with ControlClient(identity.address, identity=identity) as control:
        assert control.runs() == []
    assert proxy.targets[-1] == fleet.address


@pytest.mark.parametrize(
    ("environment", "address", "expected"),
    [
        ({}, "lab.example:8077", ""),
        ({"http_proxy": "http://c:3"}, "lab.example:8077", "http://c:3"),
        ({"http_proxy": "http://c:3", "https_proxy": "http://b:2"}, "lab.example:8077", "http://b:2"),
        ({"https_proxy": "http://b:2", "grpc_proxy": "http://a:1"}, "lab.example:8077", "http://a:1"),
        ({"grpc_proxy": "http://a:1", "no_proxy": "other.org, .example"}, "lab.example:8077", ""),
        ({"grpc_proxy": "http://a:1", "no_proxy": ".example", "no_grpc_proxy": "x"}, "lab.example:8077", "http://a:1"),
        ({"grpc_proxy": "http://a:1", "no_proxy": "10.0.0.0/8"}, "10.1.2.3:8077", ""),
        ({"grpc_proxy": "http://a:1", "no_proxy": "10.0.0.0/8"}, "11.1.2.3:8077", "http://a:1"),
        ({"grpc_proxy": "http://a:1", "no_proxy": "fd00::/8"}, "[fd00::1]:8077", ""),
        ({"grpc_proxy": "http://a:1", "no_proxy": "*"}, "lab.example:8077", ""),
        ({"https_proxy": " http://a:1\n"}, "lab.example:8077", "http://a:1"),
        ({"grpc_proxy": "http://a:1"}, "127.0.0.1:8077", ""),
        ({"grpc_proxy": "http://a:1"}, "[::1]:8077", ""),
        ({"grpc_proxy": "http://a:1"}, "localhost:8077", ""),
    ],
)
def test_the_environment_says_as_for_grpc(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], address: str, expected: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(address, "") == expected
    assert proxy_for(address, "none") == ""


@pytest.mark.parametrize(
    "url",
    [
        *("proxy:3128", "https://proxy:3128", "http://proxy", "http://:3128", "http://p:99999", "http://p:1/x", "x"),
        *("http://p:0", "http://p p:1", "http://p\n:1", "http://::1:3128"),
    ],
)
def test_another_url_is_refused_with_the_form_expected(url: str) -> None:
    with pytest.raises(UsageError, match="expected http://HOST:PORT"):
        checked(url)


def test_a_refused_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "proxy.corp:3128")
    with pytest.raises(UsageError, match=r"environment variable https_proxy: expected http://HOST:PORT"):
        proxy_for("lab.example:8077", "")


def test_a_refused_url_does_not_show_its_password() -> None:
    with pytest.raises(UsageError, match="got '…@proxy:3128'") as caught:
        checked("https://me:secret@proxy:3128")
    assert "secret" not in str(caught.value)
