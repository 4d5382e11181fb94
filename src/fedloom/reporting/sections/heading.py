"""Overview: name, outcome, key figures."""

from __future__ import annotations

import math
import shlex

from fedloom.reporting.curves import HELD_OUT, TRAINING, curve, metric_names
from fedloom.reporting.lines import best_text, rounds_text
from fedloom.reporting.markup import Content, Markup, join, tag
from fedloom.reporting.quantities import bytes_text, metric_text, plural, seconds_text
from fedloom.reporting.run_folder import RunFolder

_OUTCOME = {
    "failed": "The run failed. Its checkpoints are intact.",
    "interrupted": "The run was interrupted and can be resumed from its last round.",
    "unfinished": "The run has not ended: it is still running, or was killed.",
}
_TILED_METRICS = 4


def heading(run: RunFolder) -> Markup:
    """Return title, outcome and tiles."""
    started = run.last_event("RunStarted") or {}
    line = " · ".join(filter(None, (run.run_id, str(started.get("where", "")), str(started.get("at", ""))[:19])))
    return join(
        tag(
            "header",
            tag("h1", run.name, tag("span", run.status, class_=f"status {run.status}")),
            tag("p", line),
        ),
        _banner(run),
        _alarms(run),
        tag("dl", _tiles(run), class_="tiles"),
    )


def _banner(run: RunFolder) -> Markup | None:
    outcome = _OUTCOME.get(run.status)
    if outcome is None:
        return None
    error = run.summary.error if run.summary else None
    return tag(
        "div",
        tag("p", tag("strong", outcome)),
        tag("pre", error) if error else None,
        tag("p", "To continue: ", tag("code", f"fedloom resume {shlex.quote(str(run.path))}")),
        class_=f"banner {run.status}",
        role="note",
    )


def _alarms(run: RunFolder) -> list[Markup]:
    """Return a note for each metric watched by the workload that was not 0 in some evaluation."""
    watched = run.workload.watch if run.workload else {}
    found = {name: [r.round for r in run.rounds if (r.evaluation or {}).get(name, 0.0) > 0] for name in watched}
    return [
        tag(
            "div",
            tag("p", tag("strong", f"{name} was above 0 in {plural(len(rounds), 'round')}, first in {rounds[0]}")),
            tag("p", watched[name]),
            class_="banner alarm",
            role="note",
        )
        for name, rounds in found.items()
        if rounds
    ]


def _probed(run: RunFolder) -> str:
    """Return how many candidates a round's selection had, if it measured any."""
    most = max((len(record.candidates) for record in run.rounds), default=0)
    return f", of {most:,} candidates" if most else ""


def _tiles(run: RunFolder) -> list[Markup]:
    traffic, started = run.traffic, run.last_event("RunStarted") or {}
    parameters = run.summary.num_parameters if run.summary else started.get("num_parameters")
    cohort = run.experiment.get("cohort") or run.population
    lost = len(run.failures)
    tiles = [_metric_tile(run, metric) for metric in _tiled(run)]
    best = run.summary.best if run.summary else None
    tiles += [_tile("best round", f"{best.round:,}", best_text(best).partition(": ")[2])] if best is not None else []
    tiles += [
        _tile("rounds", f"{len(run.rounds):,}", f"of {rounds_text(run.planned_rounds)}"),
        _tile("clients", f"{run.population:,}", f"{cohort:,} selected per round{_probed(run)}"),
        _tile("sent up", bytes_text(traffic.bytes_up), f"{traffic.params_up:,} values"),
        _tile("sent down", bytes_text(traffic.bytes_down), f"{traffic.params_down:,} values"),
        _tile("time", seconds_text(run.seconds), _workers(run)),
        _tile(
            "missing updates",
            f"{lost:,}",
            "see below" if lost else "every update arrived" if run.rounds else "no client was sampled yet",
        ),
    ]
    if parameters:
        tiles.append(_tile("model", f"{parameters:,}", "parameters"))
    return tiles


def _tiled(run: RunFolder) -> list[str]:
    """Return metrics of the evaluations if there were any, otherwise of the training."""
    names = metric_names(run)
    held_out = [name for name in names if curve(run, name, HELD_OUT)]
    return (held_out or names)[:_TILED_METRICS]


def _metric_tile(run: RunFolder, metric: str) -> Markup:
    held_out = curve(run, metric, HELD_OUT)
    shown = held_out or curve(run, metric, TRAINING)
    assert shown is not None  # the name came from the run's own records
    where = "on held-out data" if held_out else "in training"
    return _tile(metric, metric_text(shown.values[-1]), f"{where}, round {shown.rounds[-1]:.0f}{_best(shown.values)}")


def _best(values: tuple[float, ...]) -> str:
    """Return the range of the curve; empty for a single value."""
    seen = [value for value in values if math.isfinite(value)]
    return f"; range {metric_text(min(seen))} to {metric_text(max(seen))}" if len(seen) > 1 else ""


def _workers(run: RunFolder) -> str:
    if run.summary is None:
        return "so far"
    return f"{run.summary.runtime}, {plural(run.summary.workers, 'worker')}"


def _tile(name: str, value: Content, detail: str) -> Markup:
    return tag("div", tag("dt", name), tag("dd", value, tag("small", detail)))
