"""The page of a comparison: its tables, and each metric of all runs against each cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedloom.core.errors import UsageError
from fedloom.reporting.charts import Series, line_chart
from fedloom.reporting.comparison import CODE_DIFFERS, LAST, RACED, TARGET, Comparison, Row, best_source
from fedloom.reporting.curves import HELD_OUT, Curve, in_order, metric_names
from fedloom.reporting.markup import Content, Markup, table, tag
from fedloom.reporting.page import page, section, write_page

PICTURE = "comparison.html"
_MOST_METRICS = 6
X_LABELS = {
    "rounds": "round",
    "megabytes": "MB sent so far, up and down, by all clients",
    "trainings": "local trainings so far, all clients",
    "seconds": "seconds of the rounds so far",
}
"""Costs that a metric is drawn against, and the names of their axes."""
WHOLE = ("rounds", "trainings")
"""Costs that are whole numbers."""


def write_picture(comparison: Comparison, path: str | Path = PICTURE) -> Path:
    """Write the comparison as one HTML page with overlaid curves; returns its path.

    Raises:
        UsageError: the place cannot be written.
        StorageFull: the disk is full.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError(f"--out {str(path)!r}: folder {str(path.parent)!r} does not exist")
    if path.is_dir():
        raise UsageError(f"--out {str(path)!r} is a folder; give a file name, such as {path / PICTURE}")
    return write_page(path, render_comparison(comparison))


def render_comparison(comparison: Comparison) -> str:
    """Return the comparison as an HTML document."""
    names = in_order(name for run in comparison.runs for name in metric_names(run))
    left_out = names[_MOST_METRICS:]
    charts = [chart for name in names[:_MOST_METRICS] for chart in _per_cost(comparison, name)]
    head: tuple[Content, ...] = ("", *comparison.labels)
    return page(
        f"Comparison of {len(comparison.runs)} runs",
        tag("header", tag("h1", f"{len(comparison.runs)} runs side by side"), tag("p", " · ".join(comparison.labels))),
        section(
            "Results", table(head, _cells(comparison.results), caption="How the runs ended"), _target_note(comparison)
        ),
        section(
            "Settings that differ",
            table(head, _cells(comparison.settings), caption="All other settings are the same")
            if comparison.settings
            else tag("p", "None: the runs have the same settings."),
        ),
        section(
            "Code that differs",
            tag("p", f"Warning: {CODE_DIFFERS}."),
            table(head, _cells(comparison.code), caption="As recorded when the runs began"),
        )
        if comparison.code
        else None,
        section(
            "Curves",
            tag("div", charts, class_="charts")
            if charts
            else tag("p", "None of the runs has measured anything yet.", class_="empty"),
            tag("p", f"Not drawn: {', '.join(left_out)}.", class_="note") if left_out else None,
        ),
    )


def _target_note(comparison: Comparison) -> Markup | None:
    """Return the target of the rows `to accuracy …`; empty without such rows."""
    if not any(row.name.startswith(f"to {RACED} ") for row in comparison.results):
        return None
    return tag(
        "p",
        f"“to {RACED} …”: cost until the held-out {RACED} first reached {TARGET:g} of the mean of the first run's "
        f"last {LAST} evaluations.",
        class_="note",
    )


def _per_cost(comparison: Comparison, metric: str) -> list[Markup]:
    """Draw the metric against each cost; local trainings only if the runs counted any."""
    along = {"rounds": "round", "megabytes": "byte sent", "trainings": "local training", "seconds": "second"}
    if not any(record.local_trainings for run in comparison.runs for record in run.rounds):
        del along["trainings"]
    return [_chart(comparison, metric, name, unit) for name, unit in along.items()]


def overlaid(comparison: Comparison, metric: str, along: str) -> list[Series]:
    """Return one metric of all runs that measured it: on held-out data if a run has it, otherwise in training.

    Args:
        comparison: the runs.
        metric: a metric's name.
        along: the cost on the horizontal axis, one of `X_LABELS`.
    """
    return [
        Series(label=_sourced(label, measured), x=getattr(measured, along), y=measured.values, color=color)
        for color, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True))
        if (measured := best_source(run, metric))
    ]


def _chart(comparison: Comparison, metric: str, along: str, unit: str) -> Markup:
    """Draw one metric of all runs."""
    without = [
        label for label, run in zip(comparison.labels, comparison.runs, strict=True) if best_source(run, metric) is None
    ]
    return line_chart(
        f"{metric} per {unit}",
        overlaid(comparison, metric, along),
        x_label=X_LABELS[along],
        x_whole=along in WHOLE,
        note=f"Not measured by {', '.join(without)}." if without else None,
    )


def _sourced(label: str, measured: Curve) -> str:
    return label if measured.source == HELD_OUT else f"{label} (training)"


def _cells(rows: Sequence[Row]) -> list[Sequence[Content]]:
    return [(row.name, *row.cells) for row in rows]
