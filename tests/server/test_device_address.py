"""A server behind forwarded ports: tokens and identities have the ports that devices see."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from members import Members, never

from fedloom.client.control import ControlClient
from fedloom.core.addresses import DeviceAddress
from fedloom.core.identity import Identity, JoinToken
from fedloom.server.access.membership import Membership, enroll_administrator, open_security
from fedloom.server.run_queue import RunQueue
from fedloom.testing.fleet import quick_server


def pump(source: socket.socket, target: socket.socket) -> None:
    """Copy bytes until one side ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def forwarded(listener: socket.socket, port: int) -> Iterator[None]:
    """Forward every connection to a port of this machine."""

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", port))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listener.close()


def test_a_device_joins_and_calls_through_forwarded_ports(tmp_path: Path) -> None:
    state = tmp_path / "state"
    outer = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    member_port, join_port = (listener.getsockname()[1] for listener in outer)
    seen = DeviceAddress(host="127.0.0.1", member_port=member_port, join_port=join_port)
    with (
        quick_server(shared_memory=False) as server,
        contextlib.closing(RunQueue(state, never)) as runs,
        open_security(state, "127.0.0.1", Membership(enroll_port=0, address=seen)) as security,
    ):
        port = server.listen(runs=runs, security=security)
        enroll_administrator(security, state / "admin", "127.0.0.1", port)
        fleet = Members(tmp_path, server, runs, security, Identity.load(state / "admin"))
        with forwarded(outer[0], port), forwarded(outer[1], server.enroll_port):
            assert JoinToken.decode(fleet.token("laptop", role="user")).address == f"127.0.0.1:{join_port}"
            identity = fleet.joined("desk", role="user")
            assert identity.address == f"127.0.0.1:{member_port}"
            with ControlClient(identity.address, identity=identity) as control:
                assert control.runs() == []
