"""An aggregation server in one object: coordinator, payload store and gRPC ports, for a simulation or as a service."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from fedloom.core.clock import SYSTEM_CLOCK, Clock
from fedloom.core.depot import Depot
from fedloom.core.errors import StorageFull
from fedloom.core.events import NodeChanged
from fedloom.core.protocols import Sink
from fedloom.server.fleet.coordinator import GRACE_S, HEARTBEAT_S, LOST_AFTER_S, Coordinator
from fedloom.server.fleet.payloads import PayloadStore

if TYPE_CHECKING:
    from fedloom.server.access.enroll_service import Security
    from fedloom.server.run_queue import RunQueue

_log = logging.getLogger(__name__)


class Server:
    """Coordinator, payload store and, once `listen` is called, their gRPC service.

    Args:
        sinks: receive events of agents connecting and disconnecting.
        shared_memory: make a depot for agents on this host.
        heartbeat_s, lost_after_s, grace_s, by_labels: see `server.coordinator`.
        clock: the one clock of everything in it; runs get it from here.
    """

    def __init__(
        self,
        sinks: Sequence[Sink] = (),
        *,
        shared_memory: bool = True,
        heartbeat_s: float = HEARTBEAT_S,
        lost_after_s: float = LOST_AFTER_S,
        grace_s: float = GRACE_S,
        by_labels: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._sinks, self.clock = sinks, clock
        self.payloads = PayloadStore(_depot() if shared_memory else None)
        self.coordinator = Coordinator(
            self.payloads,
            self._on_node,
            heartbeat_s=heartbeat_s,
            lost_after_s=lost_after_s,
            grace_s=grace_s,
            by_labels=by_labels,
            clock=clock,
        )
        self.token = ""
        self.port = self.enroll_port = 0
        self._stop_listening: Callable[[], None] | None = None

    def listen(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        token: str = "",
        runs: RunQueue | None = None,
        security: Security | None = None,
        enroll_port: int = 0,
    ) -> int:
        """Listen on an address; returns the port. See `server.service.listen`."""
        from fedloom.server.access.listening import listen

        self.token = token
        listening = listen(self.coordinator, runs, host, port, token=token, security=security, enroll_port=enroll_port)
        self._stop_listening, self.port, self.enroll_port = listening.stop, listening.port, listening.enroll_port
        return self.port

    def close(self) -> None:
        """Disconnect the agents and release all resources."""
        self.coordinator.close()
        if self._stop_listening is not None:
            self._stop_listening()
        self.payloads.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _on_node(self, event: NodeChanged) -> None:
        for sink in self._sinks:
            sink.write(event)


def _depot() -> Depot | None:
    """Make the memory that agents on this machine share; None, with a warning, if there is no place for it."""
    try:
        return Depot.create()
    except StorageFull as exc:
        _log.warning("%s. Agents on this machine are sent everything through the network instead, which is slower", exc)
        return None
