"""The nodes of a coordinator, as runs, services and runtimes see them: read-only."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping

from fedloom.core.records import JsonObject
from fedloom.server.fleet.node_table import NodeTable, Presence
from fedloom.server.fleet.nodes import Node


class FleetView:
    """Answers questions about the nodes. Thread-safe.

    Args:
        nodes: every known node.
        lock: guards them.
        by_labels: whether a run's `fleet.labels` choose its nodes; a simulation's workers have none.
    """

    def __init__(self, nodes: NodeTable, lock: threading.Condition, *, by_labels: bool) -> None:
        self._nodes, self._changed, self._by_labels = nodes, lock, by_labels

    def count_fitting(self, labels: Mapping[str, str]) -> int:
        """Return how many connected agents have all these labels."""
        with self._changed:
            return self._nodes.count_fitting(labels if self._by_labels else {})

    def present(self, labels: Mapping[str, str]) -> dict[str, Presence]:
        """Return the nodes with these labels that are connected, or may reconnect within the grace, by name."""
        with self._changed:
            return self._nodes.present(labels if self._by_labels else {})

    @property
    def online(self) -> int:
        """Return the number of attached agents."""
        return sum(node.online for node in self._nodes.values())

    def groups_done(self, node: str) -> int:
        """Return the number of groups a node has finished, all its sessions together."""
        with self._changed:
            known = self._nodes.get(node)
            return sum(known.groups_done.values()) if known is not None else 0

    def is_at_work(self, node: str) -> bool:
        """Return whether a node has a group."""
        with self._changed:
            known = self._nodes.get(node)
            return known is not None and bool(known.assigned)

    def check_session(self, node: str, session: str) -> None:
        """Raise `NotFound` unless this is the node's present session."""
        with self._changed:
            self._nodes.of_session(node, session)

    def rows(self) -> list[JsonObject]:
        """Return a row for every node, as the Control service lists them."""
        with self._changed:
            found = self._nodes.rows()
        return [{**row, "facts_json": json.dumps(facts)} for row, facts in found]

    def nodes(self) -> dict[str, Node]:
        """Return a snapshot of the agents, by name."""
        with self._changed:
            return dict(self._nodes)
