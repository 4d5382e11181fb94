"""Several runs side by side: differing settings, results, and overlaid curves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedloom.core.config import is_incidental
from fedloom.core.errors import UsageError
from fedloom.reporting.curves import HELD_OUT, TRAINING, Curve, curve, in_order, metric_names
from fedloom.reporting.lines import rounds_text
from fedloom.reporting.plain import harmless
from fedloom.reporting.plugins import contributions
from fedloom.reporting.quantities import NOTHING, bytes_text, metric_text, seconds_text
from fedloom.reporting.run_folder import RunFolder

RACED, TARGET, LAST = "accuracy", 0.9, 5
"""Runs are compared by their cost to reach this fraction of the first run's mean over its last evaluations."""
CODE_DIFFERS = "the runs' code differs"
"""The warning above the rows of code."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a name and one text per run."""

    name: str
    cells: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Return whether the runs differ in this row."""
        return len(set(self.cells)) > 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs and the rows in which they differ."""

    runs: tuple[RunFolder, ...]
    labels: tuple[str, ...]
    """One per run, all distinct."""
    results: tuple[Row, ...]
    settings: tuple[Row, ...]
    """Only settings that differ; those that may change a result first."""
    code: tuple[Row, ...]
    """Only code that differs: copied files by their digest, the commit, versions of packages. A run that has not
    recorded something does not differ in it."""


def compare(run_dirs: Sequence[str | Path]) -> Comparison:
    """Read the runs and put them side by side.

    Raises:
        UsageError: fewer than two folders, the same one twice, or one that is not a run's.
    """
    if len(run_dirs) < 2:
        raise UsageError(f"compare: expected at least two run folders, got {len(run_dirs)}")
    places = [Path(run_dir).resolve() for run_dir in run_dirs]
    for place in places:
        if places.count(place) > 1:
            raise UsageError(f"compare: {str(place)!r} is given twice; expected different runs")
    runs = tuple(RunFolder.read(run_dir) for run_dir in run_dirs)
    return Comparison(runs, _labels(runs), tuple(_results(runs)), tuple(_settings(runs)), _code(runs))


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the table in the terminal."""
    shown = Table(header_style="bold", show_lines=False, box=None, padding=(0, 2, 0, 0))
    shown.add_column("")
    for label in comparison.labels:
        shown.add_column(Text(harmless(label)), justify="right", overflow="fold")
    for row in comparison.results:
        shown.add_row(*(Text(harmless(cell)) for cell in (row.name, *row.cells)))
    if comparison.settings:
        shown.add_section()
        shown.add_row(Text("settings that differ", style="dim"))
    for row in comparison.settings:
        shown.add_row(*(Text(harmless(cell)) for cell in (row.name, *row.cells)))
    if comparison.code:
        shown.add_section()
        shown.add_row(Text(f"warning: {CODE_DIFFERS}", style="yellow"))
    for row in comparison.code:
        shown.add_row(*(Text(harmless(cell)) for cell in (row.name, *row.cells)))
    console.print(shown)


def _labels(runs: Sequence[RunFolder]) -> tuple[str, ...]:
    """Return the folders' names; with their parents' if two folders have the same name."""
    names = [run.path.resolve().name for run in runs]
    return tuple(
        name if names.count(name) == 1 else str(run.path.resolve()) for name, run in zip(names, runs, strict=True)
    )


def _results(runs: Sequence[RunFolder]) -> Iterable[Row]:
    def row(name: str, cells: Iterable[str]) -> Row:
        return Row(name, tuple(cells))

    yield row("status", (run.status for run in runs))
    yield row("rounds", (f"{len(run.rounds):,} of {rounds_text(run.planned_rounds)}" for run in runs))
    for metric in in_order(name for run in runs for name in metric_names(run)):
        last = [best_source(run, metric) for run in runs]
        yield row(metric, (metric_text(one.values[-1]) + _where(one) if one else NOTHING for one in last))
    yield from _best_rounds(runs)
    for name, cells in _to_target(runs):
        yield row(name, cells)
    yield row("sent up", (bytes_text(run.traffic.bytes_up) for run in runs))
    yield row("sent down", (bytes_text(run.traffic.bytes_down) for run in runs))
    yield from _headlines(runs)
    yield row("local trainings", (f"{sum(record.local_trainings for record in run.rounds):,}" for run in runs))
    yield row("time", (seconds_text(run.seconds) for run in runs))
    yield row("missing updates", (f"{len(run.failures):,}" for run in runs))
    digests = [run.summary.model_sha256 if run.summary else None for run in runs]
    yield row("model sha256", (digest[:12] if digest else NOTHING for digest in digests))


def _best_rounds(runs: Sequence[RunFolder]) -> Iterable[Row]:
    """Yield the row of the rounds whose models are the final ones, if a run took its best round's."""
    best = [run.summary.best if run.summary else None for run in runs]
    if any(best):
        yield Row(
            "final model of round",
            tuple(
                f"{one.round:,} (best {one.metric}: {metric_text(one.value)})"
                if one is not None
                else f"{len(run.rounds):,} (last)"
                for one, run in zip(best, runs, strict=True)
            ),
        )


def _headlines(runs: Sequence[RunFolder]) -> Iterable[Row]:
    """Yield the headline rows of strategies and workloads."""
    reported = [{k: v for each in contributions(run) for k, v in each.headlines.items()} for run in runs]
    for name in dict.fromkeys(name for each in reported for name in each):
        yield Row(name, tuple(each.get(name, NOTHING) for each in reported))


def _to_target(runs: Sequence[RunFolder]) -> Iterable[tuple[str, list[str]]]:
    """Yield each run's cost until its held-out accuracy reached a fraction of the first run's final value."""
    found = [curve(run, RACED, HELD_OUT) for run in runs]
    first = found[0]
    if first is None or not any(math.isfinite(value) for value in first.values):
        return
    ended = [value for value in first.values if math.isfinite(value)][-LAST:]
    target = TARGET * sum(ended) / len(ended)
    reached = [next((at for at, value in enumerate(one.values) if value >= target), None) if one else None
               for one in found]  # fmt: skip

    def cells(text: Callable[[Curve, int], str]) -> list[str]:
        return [text(one, at) if one and at is not None else NOTHING for one, at in zip(found, reached, strict=True)]

    to = f"to {RACED} {metric_text(target)}"
    yield f"{to}: rounds", cells(lambda one, at: f"{one.rounds[at]:,.0f}")
    yield f"{to}: local trainings", cells(lambda one, at: f"{one.trainings[at]:,.0f}")
    yield f"{to}: sent", cells(lambda one, at: bytes_text(one.megabytes[at] * 1e6))


def _where(one: Curve) -> str:
    return "" if one.source == HELD_OUT else " (training)"


def _settings(runs: Sequence[RunFolder]) -> list[Row]:
    tables = [run.settings() for run in runs]
    keys = list(dict.fromkeys(key for each in tables for key in each))
    rows = [Row(key, tuple(_text(each[key]) if key in each else NOTHING for each in tables)) for key in keys]
    return sorted((row for row in rows if row.differs), key=lambda row: is_incidental(row.name))


def _code(runs: Sequence[RunFolder]) -> tuple[Row, ...]:
    names = dict.fromkeys(name for run in runs for name in run.code)
    differ = [name for name in names if len({run.code[name] for run in runs if name in run.code}) > 1]
    return tuple(Row(name, tuple(run.code.get(name, NOTHING) for run in runs)) for name in differ)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def best_source(run: RunFolder, metric: str) -> Curve | None:
    """Return a metric's curve on held-out data, otherwise in training; None if the run has neither."""
    return curve(run, metric, HELD_OUT) or curve(run, metric, TRAINING)
