"""A run in the terminal: its configuration, a row per round, a live line below, and its result."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from fedloom.core.errors import FedloomError
from fedloom.core.events import (
    ClientLost,
    ClientsDone,
    Event,
    NodeChanged,
    NodeRefused,
    Notice,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
)
from fedloom.core.history import RoundRecord, RunSummary, Traffic
from fedloom.core.run_files import REPORT
from fedloom.reporting.curves import in_order
from fedloom.reporting.lines import (
    best_text,
    examples_lines,
    lost_line,
    round_cells,
    round_head,
    round_line,
    rounds_text,
    start_lines,
)
from fedloom.reporting.plain import escape_unprintable, harmless
from fedloom.reporting.plugins import contributions
from fedloom.reporting.quantities import bytes_text, metric_text, seconds_text
from fedloom.reporting.run_folder import RunFolder

_MOST_LOST = 5
"""Limit of failed clients shown individually per round; the others are counted."""
_MOST_METRICS = 4
_WIDTHS = {"round": 6, "updates": 9, "up": 9, "down": 9, "time": 12}


class ConsoleSink:
    """Shows a run's events: a table that grows above a progress line in a terminal, otherwise plain lines.

    Args:
        console: the destination; by default stdout.
        clock: seconds that pass; for tests.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        if console is None:
            escape_unprintable(sys.stdout)
            console = Console(markup=False, highlight=False, emoji=False)
        self._console = console
        self._clock = clock
        self._lock = threading.Lock()
        self._live = console.is_terminal
        self._bar: Progress | None = None
        self._columns: list[tuple[str, bool]] = []
        self._lost = 0
        self._sent = Traffic()
        self._durations: list[float] = []
        self._began = clock()
        self._rounds: int | None = 0
        """Rounds of the run; None if open."""
        self.summary: RunSummary | None = None
        """How the run ended; None while it runs."""

    def write(self, event: Event) -> None:
        with self._lock:
            match event:
                case RunStarted():
                    self._started(event)
                case RoundStarted():
                    self._began, self._lost = self._clock(), 0
                    self._progress(event.round, 0, event.cohort)
                case ClientsDone():
                    self._progress(event.round, event.done, event.cohort)
                case ClientLost():
                    self._client_lost(event)
                case RoundFinished():
                    self._round_finished(event.record)
                case NodeChanged(state="lost"):
                    self._say(": ".join(filter(None, (f"node {event.node} lost", event.reason))), "yellow")
                case NodeRefused(kind="failure"):
                    self._say(f"node {event.node} failed: {event.reason}; trying another node", "yellow")
                case Notice():
                    self._say(event.message, "yellow")
                case RunFinished():
                    self.summary = event.summary
                    self._stop()

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _started(self, event: RunStarted) -> None:
        self._stop()
        self._rounds, self._columns, self._durations, self._sent = event.rounds, [], [], Traffic()
        self.summary = None
        self._say(event.run_id, "bold")
        for name, value in start_lines(event):
            self._say(f"  {name:<9}{value}")
        if self._live:
            self._bar = Progress(
                BarColumn(bar_width=24),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                transient=True,
                refresh_per_second=8,
            )
            self._bar.add_task("starting", total=event.rounds, completed=event.first_round - 1)
            self._bar.start()

    def _progress(self, round: int, done: int, cohort: int) -> None:
        if self._bar is None:
            return
        left = self._left(round - 1)
        parts = [
            f"round {round}/{rounds_text(self._rounds)}",
            f"{done}/{cohort} clients",
            f"{bytes_text(self._sent.bytes_up)} up",
            f"{bytes_text(self._sent.bytes_down)} down",
            *([f"ETA {seconds_text(left)}"] if left is not None else []),
        ]
        completed = round - 1 + (done / cohort if cohort else 0.0)
        self._bar.update(self._bar.task_ids[0], description=" · ".join(parts), completed=completed)

    def _client_lost(self, event: ClientLost) -> None:
        self._lost += 1
        if self._lost <= _MOST_LOST:
            self._say(lost_line(event.failure), "red")

    def _round_finished(self, record: RoundRecord) -> None:
        self._durations.append(record.timing.total_s or self._clock() - self._began)
        self._sent += record.traffic
        if self._lost > _MOST_LOST:
            self._say(f"{self._lost - _MOST_LOST} more clients failed in round {record.round}; see the report", "red")
        is_new = self._learn_columns(record)
        if not self._live:
            self._say(round_line(record, self._rounds, self._columns, self._left(record.round)))
            return
        if is_new:
            self._say(self._row(round_head(self._columns)), "dim")
        self._say(self._row(round_cells(record, self._columns)))
        is_last = record.round == self._rounds
        self._progress(record.round if is_last else record.round + 1, 0, len(record.cohort))

    def _learn_columns(self, record: RoundRecord) -> bool:
        """Add metrics that occur for the first time; held-out ones first."""
        seen = [(name, True) for name in in_order(record.evaluation or {})]
        seen += [(name, False) for name in in_order(record.metrics)]
        fresh = [column for column in seen if column not in self._columns]
        room = max(0, _MOST_METRICS - len(self._columns))
        self._columns = sorted([*self._columns, *fresh[:room]], key=lambda column: not column[1])
        return bool(fresh[:room]) or len(self._durations) == 1

    def _row(self, cells: list[str]) -> str:
        names = round_head(self._columns)
        return " ".join(
            cell.rjust(_WIDTHS.get(name, max(10, len(name)))) for name, cell in zip(names, cells, strict=True)
        )

    def _left(self, done: int) -> float | None:
        """Estimate the seconds for the rounds after `done` from the last ten; None if unknown.

        The session's first round is left out: workers load libraries and data in it.
        """
        if self._rounds is None:
            return None
        recent = self._durations[1:][-10:]
        return sum(recent) / len(recent) * (self._rounds - done) if recent else None

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(harmless(text), style=style), soft_wrap=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def print_result(console: Console, summary: RunSummary) -> None:
    """Print the run's result, its location, and how to continue a run that did not finish."""
    console.print()
    good = "bold green" if summary.status == "done" else "bold red"
    console.print(Text(f"{summary.run_id}: {summary.status}", style=good), soft_wrap=True)
    rows = _result_rows(summary)
    width = max(19, *(len(name) + 1 for name, _ in rows))
    for name, value in rows:
        console.print(Text(f"  {name:<{width}}{harmless(value)}"), soft_wrap=True)
    if summary.status != "done" and summary.run_dir:
        first = "" if summary.status == "interrupted" else "fix the error, then "
        resume = f"  to continue      {first}fedloom resume {shlex.quote(summary.run_dir)}"
        console.print(Text(resume), soft_wrap=True)


def print_tables(console: Console, run_dir: str) -> None:
    """Print the tables that the run's plug-ins contribute to its end; none without a run's folder."""
    if not Path(run_dir).is_dir():
        return
    try:
        found = contributions(RunFolder.read(run_dir))
    except FedloomError as exc:  # the run is done whatever a plug-in's report does
        console.print(Text(f"  no tables: {harmless(str(exc))}", style="yellow"), soft_wrap=True)
        return
    for table in (table for contribution in found for table in contribution.tables):
        console.print()
        for line in table.lines():
            console.print(Text(f"  {harmless(line)}"), soft_wrap=True)


def _result_rows(summary: RunSummary) -> list[tuple[str, str]]:
    rows = [(name, metric_text(summary.metrics[name])) for name in in_order(summary.metrics)]
    rows += [] if summary.best is None else [("best round", best_text(summary.best))]
    rows += [
        ("rounds", f"{summary.rounds:,}"),
        ("sent", f"{bytes_text(summary.bytes_up)} up, {bytes_text(summary.bytes_down)} down"),
        ("time", seconds_text(summary.seconds)),
    ]
    rows += examples_lines(summary.data)
    if summary.failures:
        rows.append(("missing updates", f"{summary.failures:,}"))
    if summary.model_sha256:
        rows.append(("model sha256", summary.model_sha256))
    if summary.run_dir:
        rows.append(("run folder", summary.run_dir))
        report = Path(summary.run_dir) / REPORT
        rows += [("report", str(report))] if report.is_file() else []
    return rows
