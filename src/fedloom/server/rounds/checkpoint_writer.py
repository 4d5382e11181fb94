"""Checkpoints written behind the next round's work."""

from __future__ import annotations

import threading
from collections import deque

from fedloom.core.clock import SYSTEM_CLOCK, Clock
from fedloom.server.store.answer_journal import AnswerJournal
from fedloom.server.store.run_store import Checkpoint, RunStore


class Saver:
    """Writes checkpoints in a separate thread, one at a time.

    A crash before the write is done costs one more round on resume and no bit of the result: rounds are functions of
    the state before them.

    Args:
        store: destination.
        keep: number of newest checkpoints retained.
        journal: drops the results a checkpoint has made obsolete.
        clock: for durations.
    """

    def __init__(
        self, store: RunStore, keep: int, journal: AnswerJournal | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._store, self._keep, self._journal, self._clock = store, keep, journal, clock
        self._rounds: deque[int] = deque(maxlen=keep)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Start writing; `wait` must have been called since the last one."""
        self._thread = threading.Thread(target=self._write, args=(checkpoint,), name="fedloom-saver")
        self._thread.start()

    def wait(self) -> float:
        """Wait for the write in progress; returns the seconds that took, and raises what went wrong in it."""
        begin = self._clock.monotonic()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._clock.monotonic() - begin

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self._store.save_checkpoint(checkpoint, self._keep)
            if self._journal is not None:
                self._journal.prune(checkpoint.round)
            self._rounds.append(checkpoint.round)
            if len(self._rounds) == self._keep:  # the oldest remaining checkpoint may be the one to resume from
                self._store.prune_clients(self._rounds[0])
        except BaseException as exc:
            self._error = exc
