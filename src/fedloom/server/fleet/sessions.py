"""Sessions of agents at a coordinator: registering, connecting, disconnecting, leaving, and transfers of payloads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from fedloom.core.clock import Clock
from fedloom.core.errors import BadMessage, NotFound, ServerUnreachable
from fedloom.core.events import NodeChanged
from fedloom.core.messages import PROTOCOL, Hello, RunOver, Welcome
from fedloom.server.fleet.dispatch import Dispatch
from fedloom.server.fleet.fleet_view import FleetView
from fedloom.server.fleet.node_table import NodeTable
from fedloom.server.fleet.nodes import Mailbox
from fedloom.server.fleet.payloads import CHUNK_BYTES, PayloadStore


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetParts:
    """What the sessions of agents and the exchanges of runs have in common."""

    lock: threading.Condition
    """Guards nodes and dispatch; notified when an agent or a result comes."""
    nodes: NodeTable
    dispatch: Dispatch
    payloads: PayloadStore
    on_node: Callable[[NodeChanged], None]
    """Called with every change of an agent's state."""
    clock: Clock


class AgentSessions(FleetView):
    """Sessions of agents. Thread-safe.

    Args:
        parts: shared with the runs' side.
        heartbeat_s: seconds between an agent's heartbeats.
        by_labels: whether a run's `fleet.labels` choose its nodes; a simulation's workers have none.
    """

    def __init__(self, parts: FleetParts, *, heartbeat_s: float, by_labels: bool) -> None:
        super().__init__(parts.nodes, parts.lock, by_labels=by_labels)
        self.payloads, self._dispatch = parts.payloads, parts.dispatch
        self._on_node, self._clock, self._heartbeat_s = parts.on_node, parts.clock, heartbeat_s
        self.deleted_runs: Callable[[Collection[str]], Collection[str]] = lambda names: ()
        """Returns the deleted runs that a node may have clients' states of, by its name and the member's id."""
        self._closed = False

    def register(
        self,
        hello: Hello,
        locality: str,
        labels: Mapping[str, str] | None = None,
        address: str = "",
        *,
        member: str = "",
    ) -> Welcome:
        """Register a node, or its new session.

        Args:
            hello: its introduction.
            locality: `process`, `host` or `remote`.
            labels: its labels in the registry.
            address: where it calls from, for messages.
            member: id of the member it is; by default its name.

        Raises:
            BadMessage: it speaks another version of the protocol.
            ServerUnreachable: another agent of that name is connected, and not silent; this one may try again.
            LimitExceeded: there are `MAX_NODES` agents already.
            ServerUnreachable: the server is on its way out.
        """
        if hello.protocol != PROTOCOL:
            raise BadMessage(
                f"node {hello.node!r} speaks protocol {hello.protocol}, this server {PROTOCOL}: "
                "install the same fedloom version on both"
            )
        with self._changed:
            if self._closed:
                raise ServerUnreachable("the server is shutting down")
            freed = self._nodes.enter(hello, locality, labels or {}, address, member=member)
        del freed  # without the lock
        depot = self.payloads.depot if locality == "remote" else None
        return Welcome(
            heartbeat_s=self._heartbeat_s,
            max_payload_bytes=self.payloads.max_payload_bytes,
            chunk_bytes=CHUNK_BYTES,
            depot_path=str(depot.path) if depot else "",
            depot_nonce=depot.nonce if depot else "",
        )

    def attach(self, node: str, session: str, locality: str | None = None) -> Mailbox:
        """Open the stream of a registered session.

        Raises:
            NotFound: no such session.
            ServerUnreachable: the server is on its way out.
        """
        with self._changed:
            if self._closed:
                raise ServerUnreachable("the server is shutting down")
            known = self._nodes.of_session(node, session)
            known.locality = locality or known.locality
            mailbox = known.attach()
        self._on_node(NodeChanged(node=node, state="online"))
        for run_id in self.deleted_runs({node, known.member}):
            mailbox.put(RunOver(run_id=run_id))
        with self._changed:
            self._dispatch.push()
            self._changed.notify_all()
        return mailbox

    def detach(self, node: str, session: str, reason: str, mailbox: Mailbox | None = None) -> None:
        """Handle the end of a session's stream; unless the agent reconnects soon its groups are reassigned.

        A stream that names its mailbox ends only itself, not another one the session has opened since.
        """
        with self._changed:
            known = self._nodes.get(node)
            if known is None or known.hello.session != session or known.mailbox is None:
                return
            if mailbox is not None and known.mailbox is not mailbox:
                return
            known.detach()
            state: Literal["left", "lost"] = "left" if self._closed else "lost"
            self._changed.notify_all()
        self._on_node(NodeChanged(node=node, state=state, reason=reason))

    def leave(self, node: str, session: str, reason: str) -> None:
        """Remove an agent that left or is known to be dead: its groups are reassigned immediately."""
        with self._changed:
            known = self._nodes.get(node)
            if known is None or (session and known.hello.session != session):
                return
            known.leave()
            self._dispatch.requeue(node, reason or "the agent left")
            freed = self.payloads.forget(node)
        del freed  # without the lock
        self._on_node(NodeChanged(node=node, state="left", reason=reason))

    def expel(self, node: str, reason: str) -> None:
        """Remove an agent that is no longer a member: a later agent of its name inherits none of its groups."""
        self.leave(node, "", reason)
        with self._changed:
            self._dispatch.disown(node)

    def download(self, node: str, sha256: str, offset: int) -> Iterator[bytes]:
        """Return a frame from `offset` on, in chunks, for a node with a group that reads it.

        Raises:
            NotFound: none of its groups reads such a payload (any more).
            BadMessage: the offset is beyond the frame's end.
        """
        with self._changed:
            if not self._dispatch.entitlements.may_read(node, sha256):
                raise NotFound(f"no group of node {node!r} reads a payload {sha256[:16]!r}; its round may have ended")
        return self.payloads.download(sha256, offset)

    def upload_limit(self, node: str) -> int | None:
        """Return how many bytes a node may upload for its unanswered groups; None for no other limit.

        Raises:
            NotFound: it has none.
        """
        with self._changed:
            limit = self._dispatch.entitlements.upload_bytes(node)
        if limit == 0:
            raise NotFound(f"node {node!r} uploads, but has no unanswered group; its round may be over")
        return limit

    def label(self, node: str, labels: Mapping[str, str]) -> None:
        """Apply a change of a node's labels."""
        with self._changed:
            if node in self._nodes:
                self._nodes[node].labels = labels
                self._dispatch.push()

    def count_bytes(self, node: str, *, down: int = 0, up: int = 0) -> None:
        """Account for bytes that crossed to or from a node."""
        with self._changed:
            if node in self._nodes:
                self._nodes[node].bytes_down += down
                self._nodes[node].bytes_up += up

    @property
    def closed(self) -> bool:
        """Return whether the agents have been disconnected."""
        return self._closed
