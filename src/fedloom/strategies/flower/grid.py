"""The Grid of a hosted strategy or app: clients as Flower nodes, without a network."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from fedloom.core.errors import UnsupportedFeature
from fedloom.strategies.flower import flwr_api as flwr

_PATIENCE = 3
"""Queries for nodes after which code that polls for more of them is stopped."""
_PAUSE_S = 0.5
"""Seconds between two such queries that indicate a sleep in between."""


class ClientsGrid(flwr.Grid):  # type: ignore[misc]  # flwr's classes are untyped here
    """The federation's clients as nodes. Enough for choosing them and making messages; sending is a subclass's."""

    def __init__(self, clients: Sequence[int], more: str = "raise `clients`") -> None:
        """Make a grid of clients; `more` says how a run gets more of them."""
        self._clients, self._more = tuple(clients), more
        self._asked_at = float("-inf")
        self._waits = 0

    def set_run(self, run: object) -> None:
        """Do nothing: a grid is made for one run."""

    @property
    def run(self) -> object:
        raise UnsupportedFeature("a hosted Flower strategy has no `grid.run`; host its app instead")

    def create_message(
        self, content: flwr.RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> flwr.Message:
        return flwr.instruction(content, flwr.client_of(dst_node_id), message_type, group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return node ids of all clients, ascending by client.

        Raises:
            UnsupportedFeature: the caller waits for nodes to join; the set never changes, so it would wait forever.
        """
        now = time.monotonic()
        self._waits = self._waits + 1 if _PAUSE_S <= now - self._asked_at < 60 * _PAUSE_S else 0
        self._asked_at = now
        if self._waits >= _PATIENCE:
            raise UnsupportedFeature(
                f"the app waits for more nodes than there are: this run has {len(self._clients)} clients. Lower its "
                f"minimum (such as min_available_nodes, min_train_nodes), or {self._more}"
            )
        return [flwr.node_id(client) for client in self._clients]

    def exchanged(self) -> None:
        """Notify the grid that messages were sent: queries for nodes after that are not waiting."""
        self._asked_at = float("-inf")

    def push_messages(self, messages: Iterable[flwr.Message]) -> Iterable[str]:
        raise UnsupportedFeature(
            "this Flower strategy sends messages itself (grid.push_messages); host its app instead"
        )

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[flwr.Message]:
        raise UnsupportedFeature(
            "this Flower strategy pulls messages itself (grid.pull_messages); host its app instead"
        )

    def send_and_receive(
        self, messages: Iterable[flwr.Message], *, timeout: float | None = None
    ) -> Iterable[flwr.Message]:
        raise UnsupportedFeature(
            "this Flower strategy sends messages itself (grid.send_and_receive) while it configures a round; "
            "host its app instead"
        )
