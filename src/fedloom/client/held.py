"""Trained updates that wait where they were made, until they are collected or forgotten."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from fedloom.core.records import Update

EXPIRES_S = 3600.0
"""Seconds after which a held update is dropped, collected or not."""


def own(update: Update) -> Update:
    """The update with copies of its arrays."""
    groups = {g: {n: np.array(array) for n, array in arrays.items()} for g, arrays in update.groups.items()}
    return replace(update, groups=groups)


class HeldUpdates:
    """Updates of one round by client. A later round, or an hour, ends them; an update that is gone is trained again."""

    def __init__(self) -> None:
        self._round: tuple[str, int] = ("", 0)
        self._updates: dict[int, tuple[float, Update]] = {}

    def put(self, run_id: str, round: int, client: int, update: Update) -> None:
        """Keep an update (with arrays of its own, see `own`); those of other rounds are dropped."""
        self.expire(run_id, round)
        self._updates[client] = (time.monotonic(), update)

    def take(self, run_id: str, round: int, client: int) -> Update | None:
        """A held update; it stays until its round is over, for the case that its delivery is lost."""
        self.expire(run_id, round)
        kept = self._updates.get(client)
        return kept[1] if kept is not None else None

    def expire(self, run_id: str, round: int) -> None:
        """Drop what does not belong to this round, and what is too old."""
        if self._round != (run_id, round):
            self._round = (run_id, round)
            self._updates.clear()
        oldest = time.monotonic() - EXPIRES_S
        self._updates = {client: kept for client, kept in self._updates.items() if kept[0] >= oldest}

    def __len__(self) -> int:
        return len(self._updates)
