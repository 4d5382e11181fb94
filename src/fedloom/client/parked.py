"""Parked updates: trained, and stored where they were made until they are collected or dropped."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np

from fedloom.core.records import Groups, Record, Update

LIMIT_BYTES = 8_000_000_000
"""Default limit of an agent's parked updates, all runs together; bytes of array data."""
EXPIRES_S = 3600.0
"""Seconds after which a parked update is dropped, collected or not."""


def own(update: Update) -> Update:
    """Copy the arrays of an update and of its state, which may be views of the workload's buffers."""
    state = None if update.state is None else replace(update.state, groups=_copies(update.state.groups))
    return replace(update, groups=_copies(update.groups), state=state)


def _copies(groups: Groups) -> Groups:
    return {group: {name: np.array(array) for name, array in arrays.items()} for group, arrays in groups.items()}


@dataclass(frozen=True, slots=True)
class _Parked:
    update: Update
    at: float
    """When it was parked; monotonic seconds."""
    num_bytes: int


@dataclass
class _Round:
    """A run's present round, by its parked updates, and those updates by client."""

    number: int
    updates: dict[int, _Parked] = field(default_factory=dict)


class ParkedUpdates:
    """Updates of each run's present round, by client.

    A later round of the run ends them, as do `forget`, an hour, and the limit (oldest first, whatever their run). An
    update that was dropped is trained again.

    Args:
        limit_bytes: of array data, all runs together; an update that alone exceeds it is not parked.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._rounds: dict[str, _Round] = {}

    def put(self, run_id: str, round: int, client: int, update: Update) -> None:
        """Park an update whose arrays are its own (see `own`); the run's updates of other rounds are dropped."""
        now = time.monotonic()
        present = self._rounds.get(run_id)
        if present is None or present.number != round:
            present = self._rounds[run_id] = _Round(round)
        present.updates.pop(client, None)
        size = Record(update.groups).num_bytes + (update.state.num_bytes if update.state is not None else 0)
        self._expire(now)
        if size > self._limit_bytes:
            return
        present.updates[client] = _Parked(update, now, size)
        while self.num_bytes > self._limit_bytes:
            self._drop_oldest()

    def take(self, run_id: str, round: int, client: int) -> Update | None:
        """Return a parked update. It stays until its round is over, because its delivery may fail."""
        self._expire(time.monotonic())
        present = self._rounds.get(run_id)
        if present is not None and present.number < round:
            del self._rounds[run_id]
        if present is None or present.number != round:
            return None
        parked = present.updates.get(client)
        return parked.update if parked is not None else None

    def forget(self, run_id: str) -> None:
        """Drop a run's updates: the run is over."""
        self._rounds.pop(run_id, None)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of array data parked now."""
        return sum(parked.num_bytes for present in self._rounds.values() for parked in present.updates.values())

    def __len__(self) -> int:
        return sum(len(present.updates) for present in self._rounds.values())

    def _expire(self, now: float) -> None:
        for present in self._rounds.values():
            for client in [c for c, parked in present.updates.items() if parked.at < now - EXPIRES_S]:
                del present.updates[client]

    def _drop_oldest(self) -> None:
        _, run_id, client = min(
            (parked.at, run_id, client)
            for run_id, present in self._rounds.items()
            for client, parked in present.updates.items()
            if parked.num_bytes
        )
        del self._rounds[run_id].updates[client]
