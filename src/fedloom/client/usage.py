"""What a node has done today: bytes, runs and rounds, by the node's clock, stored across restarts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from fedloom.core import files


class Usage:
    """Today's traffic in bytes, and the runs and rounds that were begun.

    Args:
        file: stores them.
        now: the node's clock, local time.
    """

    def __init__(self, file: Path, now: Callable[[], datetime] = datetime.now) -> None:
        self._file, self._now = file, now
        self._written = 0.0
        self._day, self._bytes = "", 0
        self._runs, self._rounds = set[str](), set[str]()
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
            self._day, self._bytes = str(saved["day"]), int(saved["bytes"])
            self._runs, self._rounds = set(map(str, saved.get("runs", ()))), set(map(str, saved.get("rounds", ())))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # no count yet

    def add(self, count: int) -> None:
        """Count bytes that crossed."""
        self._bytes = self.today() + count
        if time.monotonic() - self._written > 1.0:
            self.save()

    def today(self) -> int:
        """Return the bytes since the day began."""
        day = self._now().date().isoformat()
        if day != self._day:
            self._day, self._bytes = day, 0
            self._runs, self._rounds = set(), set()
        return self._bytes

    def begin(self, run_id: str, round: int) -> None:
        """Count a run and its round, each once a day; at once on the disk, so that a restart forgets none.

        Raises:
            OSError: it cannot be written.
        """
        self.today()
        name = _round_name(run_id, round)
        if run_id in self._runs and (round < 1 or name in self._rounds):
            return
        self._runs.add(run_id)
        self._rounds |= {name} if round >= 1 else set()
        self.save()

    def runs_with(self, run_id: str) -> int:
        """Return the number of today's runs, this one included."""
        self.today()
        return len(self._runs | {run_id})

    def rounds_with(self, run_id: str, round: int) -> int:
        """Return the number of today's rounds, this one included; round 0, the initial model, is none."""
        self.today()
        return len(self._rounds | ({_round_name(run_id, round)} if round >= 1 else set()))

    def seconds_left(self) -> float:
        """Return the seconds until the day ends, at least one."""
        now = self._now()
        tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return max(1.0, (tomorrow - now).total_seconds())

    def save(self) -> None:
        """Save the counts."""
        self._written = time.monotonic()
        saved = {"day": self._day, "bytes": self._bytes, "runs": sorted(self._runs), "rounds": sorted(self._rounds)}
        files.write(self._file, json.dumps(saved))


def _round_name(run_id: str, round: int) -> str:
    return f"{run_id}/{round}"
