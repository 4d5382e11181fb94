"""A server with members, small enough for a test: real certificates, real TLS on loopback."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom.client.admin import AdminClient
from fedloom.client.enroll import join
from fedloom.core.history import RunSummary
from fedloom.core.identity import Identity
from fedloom.server.access.enroll_service import Security
from fedloom.server.access.membership import Membership, enroll_administrator, open_security
from fedloom.server.app import Server
from fedloom.server.run_queue import RunQueue
from fedloom.testing.fleet import quick_server


@dataclass
class Members:
    """A running server, and ways into it."""

    folder: Path
    server: Server
    runs: RunQueue
    security: Security
    admin: Identity

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def token(self, name: str, **options: Any) -> str:
        with AdminClient(self.admin) as admin:
            return admin.create_token(name, **{"ttl_s": 60.0, **options}).encode()

    def joined(self, name: str, role: str = "node", **options: Any) -> Identity:
        return join(self.token(name, role=role, **options), self.folder / "identities" / name)

    def revoke(self, name: str) -> None:
        with AdminClient(self.admin) as admin:
            admin.revoke(name)


def never(store: Any, emit: Any, stop: threading.Event) -> RunSummary:
    raise AssertionError("no run is started here")


@contextlib.contextmanager
def members(
    folder: Path,
    *,
    certificate_days: float = 30.0,
    run_one: Any = never,
    allowed: tuple[str, ...] = (),
    **options: Any,
) -> Iterator[Members]:
    """A server with members on a folder; started on the same folder again, it is the same server."""
    state = folder / "state"
    membership = Membership(enroll_port=0, certificate_days=certificate_days, allowed=allowed)
    with (
        quick_server(shared_memory=False, **options) as server,
        contextlib.closing(RunQueue(state, run_one)) as runs,
        open_security(state, "127.0.0.1", membership) as security,
    ):
        port = server.listen(runs=runs, security=security)
        enroll_administrator(security, state / "admin", "127.0.0.1", port)
        yield Members(folder, server, runs, security, Identity.load(state / "admin"))
