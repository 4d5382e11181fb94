"""Decides what a node may read and send: payloads of its unanswered groups, and as many bytes as their results need."""

from __future__ import annotations

from collections.abc import Mapping

from fedloom.server.fleet.open_exchange import OpenExchange


class Entitlements:
    """Decides nodes' requests by the groups assigned to them. Not thread-safe: call it with its owner's lock.

    Args:
        open_exchanges: the exchanges that are open, which their owner adds and removes.
    """

    def __init__(self, open_exchanges: Mapping[tuple[str, int, int], OpenExchange]) -> None:
        self._open = open_exchanges
        self._model_bytes: dict[str, int] = {}
        """The largest inputs of an exchange of each run; bytes."""

    def learn(self, opened: OpenExchange) -> None:
        """Note how large the inputs of a run's exchange are."""
        run_id, read = opened.run.run_id, sum(offer.size for offer in opened.inputs.values())
        self._model_bytes[run_id] = max(read, self._model_bytes.get(run_id, 0))

    def forget(self, run_id: str) -> None:
        """Forget a run that is over."""
        self._model_bytes.pop(run_id, None)

    def may_read(self, name: str, sha256: str) -> bool:
        """Return whether an unfinished group of a node reads the payload of this digest."""
        return any(opened.is_read_by(name, sha256) for opened in self._open.values())

    def upload_bytes(self, name: str) -> int | None:
        """Return how many bytes the answers of a node's groups can need, 0 if it has none to give.

        None if it is unknown yet, as for the group that makes the initial model.
        """
        total = 0
        for opened in self._open.values():
            for index in opened.assigned_to(name):
                need = opened.upload_bytes(index, self._model_bytes.get(opened.run.run_id, 0))
                if need is None:
                    return None
                total += need
        return total
