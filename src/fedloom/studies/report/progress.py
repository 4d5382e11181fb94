"""A study in the terminal while it runs: a line per finished run, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from fedloom.reporting.plain import harmless
from fedloom.reporting.quantities import seconds_text
from fedloom.studies.grid import Planned

_MOST_SHOWN = 3
_EVERY_ROUND_S = 0.5
"""Seconds between two updates of the live line."""


class Progress:
    """Lines for runs that end; in a terminal also a bar with the runs in progress.

    Args:
        console: the destination.
        clock: seconds that pass; for tests.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._bar: Bar | None = None
        self._total = self._ended = 0
        self._going: dict[str, str] = {}
        self._shown_at = 0.0
        self._began, self._here = clock(), 0

    def begin(self, total: int, done: int, jobs: int) -> None:
        self._total, self._ended, self._began = total, done, self._clock()
        earlier = f", {done:,} of them already finished" if done else ""
        self._say(f"{total:,} runs{earlier}; {min(jobs, max(total - done, 0))} at a time", "")
        if self._console.is_terminal and done < total:
            self._bar = Bar(BarColumn(24), TextColumn("{task.description}"), console=self._console, transient=True)
            self._bar.add_task("starting", total=total, completed=done)
            self._bar.start()

    def round(self, run: Planned, number: int, rounds: int) -> None:
        self._going[run.key] = f"{run.key} {number}/{rounds}"
        now = self._clock()
        if self._bar is not None and now - self._shown_at > _EVERY_ROUND_S:
            self._shown_at = now
            self._update()

    def end(self, run: Planned, ended: str, error: str, seconds: float) -> None:
        self._going.pop(run.key, None)
        self._ended += 1
        self._here += 1
        reported = f"{self._ended}/{self._total}  {run.key}  {ended}  {seconds_text(seconds)}"
        if self._ended < self._total:
            reported += f"  ETA {seconds_text(self.left_s())}"
        self._say(f"{reported}{': ' + error if error else ''}", "red" if ended == "failed" else "")
        self._update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def left_s(self) -> float:
        """Estimate the seconds that the remaining runs will take, at the pace of those done here."""
        passed = self._clock() - self._began
        return passed / max(self._here, 1) * (self._total - self._ended)

    def _update(self) -> None:
        if self._bar is not None:
            shown = ", ".join(list(self._going.values())[:_MOST_SHOWN])
            left = f"  ETA {seconds_text(self.left_s())}" if self._here else ""
            text = f"{self._ended}/{self._total}{left}  {shown}"
            self._bar.update(self._bar.task_ids[0], completed=self._ended, description=text)

    def _say(self, text: str, style: str) -> None:
        (self._bar.console if self._bar else self._console).print(Text(harmless(text), style=style), soft_wrap=True)
