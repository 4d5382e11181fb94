"""The nodes a coordinator knows, by name: their sessions, and which of them are silent, gone or too many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fedloom.core.clock import Clock
from fedloom.core.errors import LimitExceeded, NotFound, ServerUnreachable
from fedloom.core.messages import Hello
from fedloom.core.records import JsonObject
from fedloom.server.fleet.nodes import Node
from fedloom.server.fleet.payloads import PayloadStore, Upload

MAX_NODES = 10_000
"""Limit of known nodes; those disconnected longest are forgotten first."""
UPLOADS_S = 30.0
"""Seconds after the grace period for which the uploads of a disconnected agent are stored."""


class Presence(NamedTuple):
    """A node that is connected."""

    member: str
    """Id of the member it is."""
    session: str


class NodeTable(dict[str, Node]):
    """Known nodes by name. Not thread-safe: call it with its owner's lock.

    Args:
        payloads: stores the nodes' uploads.
        clock: for silence and grace.
        lost_after_s: seconds of silence after which an attached agent counts as disconnected.
        grace_s: seconds a disconnected agent may take to reconnect.
    """

    def __init__(self, payloads: PayloadStore, clock: Clock, *, lost_after_s: float, grace_s: float) -> None:
        super().__init__()
        self._payloads, self._clock = payloads, clock
        self._lost_after_s, self._grace_s = lost_after_s, grace_s

    def enter(
        self, hello: Hello, locality: str, labels: Mapping[str, str], address: str, *, member: str = ""
    ) -> list[Upload]:
        """Add a node, or its new session; returns uploads to release without the lock.

        Args:
            hello: its introduction.
            locality: `process`, `host` or `remote`.
            labels: its labels in the registry.
            address: where it calls from, for messages.
            member: id of the member it is; by default its name.

        Raises:
            ServerUnreachable: another agent of that name is connected, and not silent; this one may try again.
            LimitExceeded: there are `MAX_NODES` nodes already.
        """
        old, freed = self.get(hello.node), list[Upload]()
        if old is not None and old.precedes(hello):
            raise ServerUnreachable(old.refuse(hello, address, self._lost_after_s))
        node = Node(hello, locality, labels=labels, clock=self._clock, address=address)
        node.member = member or hello.node
        if old is not None:
            node.inherit(old)
            # The same agent reconnected, which will not read this, or a second one.
            old.send_away(f"another agent connected with the identity {hello.node!r}")
        else:
            freed = self._make_room()
        self[hello.node] = node
        return freed

    def of_session(self, name: str, session: str) -> Node:
        """Return the node whose present session this is.

        Raises:
            NotFound: no such session.
        """
        known = self.get(name)
        if known is None or known.hello.session != session:
            raise NotFound(f"node {name!r} has no session {session!r} here; register first")
        return known

    def count_fitting(self, labels: Mapping[str, str]) -> int:
        """Return how many connected nodes have all these labels."""
        return sum(
            node.online and all(node.labels.get(key) == value for key, value in labels.items())
            for node in self.values()
        )

    def present(self, labels: Mapping[str, str]) -> dict[str, Presence]:
        """Return the nodes with all these labels that are connected, or may reconnect within the grace, by name."""
        now = self._clock.monotonic()
        return {
            name: Presence(node.member, node.hello.session)
            for name, node in self.items()
            if node.is_present(now, self._grace_s)
            and all(node.labels.get(key) == value for key, value in labels.items())
        }

    def rows(self) -> list[tuple[JsonObject, Mapping[str, object]]]:
        """Return a row for every node, as the Control service lists them, and its facts."""
        now = self._clock.monotonic()
        return [(node.row(now), node.hello.facts) for _, node in sorted(self.items())]

    def flush(self) -> None:
        """Deliver the deferred messages of every node that were there at the last call."""
        for node in self.values():
            if node.mailbox is not None:
                node.mailbox.flush_aged()

    def silent(self) -> list[tuple[str, str]]:
        """Return the names and sessions of attached agents of other processes that sent nothing for too long."""
        now = self._clock.monotonic()
        return [
            (name, node.hello.session)
            for name, node in self.items()
            if node.online and node.locality != "process" and now - node.seen > self._lost_after_s
        ]

    def overflowed(self) -> list[tuple[str, str]]:
        """Return the names and sessions of agents that do not read their messages."""
        return [(name, node.hello.session) for name, node in self.items() if node.mailbox and node.mailbox.overflown]

    def to_reassign(self) -> list[str]:
        """Return the disconnected nodes whose grace period is over and that still have groups."""
        return [name for name in self._away_for(self._grace_s) if self[name].assigned]

    def gone(self) -> list[str]:
        """Return the nodes disconnected for so long that their uploads can be dropped."""
        return self._away_for(self._grace_s + UPLOADS_S)

    def _away_for(self, seconds: float) -> list[str]:
        now = self._clock.monotonic()
        return [name for name, node in self.items() if node.gone_since is not None and now - node.gone_since > seconds]

    def _make_room(self) -> list[Upload]:
        """Forget the nodes disconnected longest if there are too many; returns their uploads."""
        if len(self) < MAX_NODES:
            return []
        away = [name for name, node in self.items() if not node.online and not node.assigned]
        if not away:
            raise LimitExceeded(f"{MAX_NODES} agents are connected, which is the limit")
        oldest = sorted(away, key=lambda name: self[name].seen)[: MAX_NODES // 10]
        for name in oldest:
            del self[name]
        return [upload for name in oldest for upload in self._payloads.forget(name)]
