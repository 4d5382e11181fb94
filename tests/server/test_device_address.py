"""A server behind forwarded ports: tokens and identities have the ports that devices see."""

import contextlib
import socket
from pathlib import Path

from connect_proxy import forwarded
from members import Members, never

from fedloom.client.control import ControlClient
from fedloom.core.addresses import DeviceAddress
from fedloom.core.identity import Identity, JoinToken
from fedloom.server.access.membership import Membership, enroll_administrator, open_security
from fedloom.server.run_queue import RunQueue
from fedloom.testing.fleet import quick_server


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
        with forwarded(outer[0], "127.0.0.1", port), forwarded(outer[1], "127.0.0.1", server.enroll_port):
            assert JoinToken.decode(fleet.token("laptop", role="user")).address == f"127.0.0.1:{join_port}"
            identity = fleet.joined("desk", role="user")
            assert identity.address == f"127.0.0.1:{member_port}"
            with ControlClient(identity.address, identity=identity) as control:
                assert control.runs() == []
