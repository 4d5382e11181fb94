"""One chart of a comparison as an SVG file of its own: for a paper, a slide, a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedloom.core.errors import UsageError
from fedloom.core.text import did_you_mean
from fedloom.reporting.axes import Plane, finite
from fedloom.reporting.charts import PALETTE, Series, line_plane, lines
from fedloom.reporting.comparison import Comparison
from fedloom.reporting.comparison_page import WHOLE, X_LABELS, overlaid
from fedloom.reporting.curves import in_order, metric_names
from fedloom.reporting.markup import Markup, join, tag
from fedloom.reporting.page import write_page

_COLORS = ("#2f6bd8", "#c85a12", "#12877a", "#8448bd", "#c42d58", "#7a7410", "#6b6f7a", "#1580aa")
_WIDTH, _HEIGHT, _ROW = 640.0, 340.0, 20.0
_STYLE = (
    "text{font:12px system-ui,'Segoe UI','DejaVu Sans',sans-serif;fill:#566170}"
    ".title{font-size:14px;font-weight:600;fill:#1a2029}.name{fill:#1a2029}.grid{stroke:#e6e9ee}.axis{stroke:#566170}"
    "path{stroke-width:2;stroke-linejoin:round;stroke-linecap:round}"
    + "".join(f".s{at}{{stroke:{color}}}.f{at}{{fill:{color}}}" for at, color in enumerate(_COLORS))
)


def write_chart(comparison: Comparison, path: Path, metric: str | None, along: str) -> Path:
    """Write one metric of all runs as an SVG file; returns its path.

    Args:
        comparison: the runs.
        path: the file, whose name ends in `.svg`.
        metric: the metric's name; the first that the runs measured (not the loss, if there is another) if None.
        along: the cost on the horizontal axis, one of `comparison_page.X_LABELS`.

    Raises:
        UsageError: another ending, a metric or cost that does not exist, or a place that cannot be written.
        StorageFull: the disk is full.
    """
    if path.suffix.lower() != ".svg":
        raise UsageError(f"--chart {str(path)!r}: expected a file name that ends in .svg")
    if along not in X_LABELS:
        raise UsageError(f"--against {along!r}: {did_you_mean(along, X_LABELS)}expected one of {', '.join(X_LABELS)}")
    name = _metric(comparison, metric)
    series = [one for one in overlaid(comparison, name, along) if finite(one.y)]
    if not series:
        raise UsageError(f"--chart: none of the runs measured a finite value of {name!r}")
    if not any(value for one in series for value in one.x):
        raise UsageError(f"--against {along!r}: none of the runs counted any; expected another cost")
    if not path.parent.is_dir():
        raise UsageError(f"--chart {str(path)!r}: folder {str(path.parent)!r} does not exist")
    return write_page(path, render_chart(name, series, along))


def render_chart(metric: str, series: Sequence[Series], along: str) -> str:
    """Return the SVG document: a title, a legend with one row for each series, and the lines."""
    below = 34.0 + _ROW * len(series)
    plane: Plane = replace(
        line_plane(series, x_whole=along in WHOLE), width=_WIDTH, height=_HEIGHT + below, top=below + 6.0
    )
    return join(
        tag(
            "svg",
            tag("style", Markup(_STYLE)),
            tag("rect", width=plane.width, height=plane.height, fill="#ffffff"),
            tag("text", metric, x=plane.left, y=22, class_="title"),
            [_key(plane, row, one) for row, one in enumerate(series)],
            lines(plane, series, X_LABELS[along], x_whole=along in WHOLE),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {plane.width:g} {plane.height:g}",
            role="img",
            aria_label=f"{metric}, against {X_LABELS[along]}",
        ),
        "\n",
    )


def _key(plane: Plane, row: int, series: Series) -> Markup:
    """Draw a series' colour and label."""
    y = 34.0 + _ROW * row
    return join(
        tag("rect", x=plane.left, y=y, width=12, height=12, rx=3, class_=f"f{series.color % PALETTE}"),
        tag("text", series.label, x=plane.left + 20, y=y + 10, class_="name"),
    )


def _metric(comparison: Comparison, named: str | None) -> str:
    """Return the metric to draw."""
    names = in_order(name for run in comparison.runs for name in metric_names(run))
    if not names:
        raise UsageError("--chart: none of the runs has measured anything yet")
    if named is None:
        return next((name for name in names if name != "loss"), names[0])
    if named not in names:
        raise UsageError(f"--metric {named!r}: {did_you_mean(named, names)}expected one of {', '.join(names)}")
    return named
