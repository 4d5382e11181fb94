"""Charts of a study: curves with bands, and one row of dots per arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedloom.reporting.axes import Plane, Range, finite
from fedloom.reporting.charts import PALETTE, figure, frame, line_chart, svg
from fedloom.reporting.markup import Markup, join, tag
from fedloom.reporting.quantities import metric_text

_ROW = 24.0
"""Height of an arm's row; SVG units."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Banded:
    """A line and the band around it."""

    label: str
    x: Sequence[float]
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    color: int


def band_chart(title: str, lines: Sequence[Banded], *, x_label: str, note: str | None = None) -> Markup:
    """Draw lines with bands; without finite values the chart says so."""
    drawn = [line for line in lines if finite(line.middle)]
    if not drawn:
        return line_chart(title, [], x_label=x_label, note=note)
    plane = Plane(
        x=Range.of([value for line in drawn for value in line.x]),
        y=Range.of([value for line in drawn for value in (*line.low, *line.high)]).to_ticks(),
    )
    reported = "; ".join(f"{line.label}: to {metric_text(finite(line.middle)[-1])}" for line in drawn)
    picture = svg(
        plane,
        f"{title}, against {x_label}. {reported}",
        frame(plane, x_label, x_whole=True),
        [_area(plane, line) for line in drawn],
        [_stroke(plane, line) for line in drawn],
    )
    return figure(title, picture, legend=[(line.label, line.color) for line in drawn], note=note)


def dot_chart(
    title: str,
    rows: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    censored_at: float | None = None,
    reference: float | None = None,
    note: str | None = None,
) -> Markup:
    """Draw a row of dots for each arm, one per seed, with the median as a bar.

    Args:
        title: the title.
        rows: values by arm.
        x_label: name of the axis.
        censored_at: values from here on were never reached; they are drawn hollow.
        reference: position of the vertical line: the reference's median.
        note: a sentence below.
    """
    if not finite(value for values in rows.values() for value in values):
        return figure(title, tag("p", "Nothing was measured.", class_="empty"), note=note, wide=True)
    every = [value for values in rows.values() for value in values]
    count = len(rows)
    plane = Plane(
        width=940.0,
        height=50.0 + _ROW * count,
        left=150.0,
        x=Range.of(every).to_ticks(),
        y=Range(low=count - 0.5, high=-0.5),
    )
    names = [(float(index), name) for index, name in enumerate(rows)]
    reported = "; ".join(
        f"{name}: median {metric_text(_median(values))}" for name, values in rows.items() if finite(values)
    )
    parts = [
        join(_dots(plane, index, name, values, censored_at), _bar(plane, index, values))
        for index, (name, values) in enumerate(rows.items())
    ]
    picture = svg(
        plane,
        f"{title}. {reported}",
        frame(plane, x_label, y_ticks=lambda _: names),
        _upright(plane, reference) if reference is not None and math.isfinite(reference) else None,
        parts,
    )
    return figure(title, picture, note=note, wide=True)


def _area(plane: Plane, line: Banded) -> Markup | None:
    points = [
        (x, low, high)
        for x, low, high in zip(line.x, line.low, line.high, strict=True)
        if math.isfinite(low) and math.isfinite(high)
    ]
    if len(points) < 2:
        return None
    there = [f"{plane.across(x):.1f} {plane.down(high):.1f}" for x, _, high in points]
    back = [f"{plane.across(x):.1f} {plane.down(low):.1f}" for x, low, _ in reversed(points)]
    return tag("path", d=f"M{'L'.join([*there, *back])}Z", fill_opacity="0.14", class_=f"f{line.color % PALETTE}")


def _stroke(plane: Plane, line: Banded) -> Markup:
    drawn = [(x, y) for x, y in zip(line.x, line.middle, strict=True) if math.isfinite(y)]
    last_x, last_y = drawn[-1]
    path = "L".join(f"{plane.across(x):.1f} {plane.down(y):.1f}" for x, y in drawn)
    return join(
        tag("path", d=f"M{path}", fill="none", class_=f"s{line.color % PALETTE}"),
        tag(
            "circle",
            tag("title", f"{line.label}: {metric_text(last_y)}"),
            cx=plane.across(last_x),
            cy=plane.down(last_y),
            r=2.6,
            class_=f"f{line.color % PALETTE}",
        ),
    )


def _dots(plane: Plane, row: int, name: str, values: Sequence[float], censored_at: float | None) -> list[Markup]:
    dots = []
    for value in finite(values):
        hollow = censored_at is not None and value >= censored_at
        dots.append(
            tag(
                "circle",
                tag("title", f"{name}: {metric_text(value)}{' (not reached)' if hollow else ''}"),
                cx=plane.across(value),
                cy=plane.down(row),
                r=3.6,
                class_="s0" if hollow else "f0",
                fill="none" if hollow else None,
                fill_opacity=None if hollow else "0.5",
            )
        )
    return dots


def _bar(plane: Plane, row: int, values: Sequence[float]) -> Markup | None:
    if not finite(values):
        return None
    at = plane.across(_median(values))
    return tag(
        "line", x1=at, x2=at, y1=plane.down(row - 0.36), y2=plane.down(row + 0.36), stroke_width="3", class_="s4"
    )


def _upright(plane: Plane, value: float) -> Markup:
    at = plane.across(value)
    return tag(
        "line",
        x1=at,
        x2=at,
        y1=plane.top,
        y2=plane.height - plane.bottom,
        stroke_dasharray="4 4",
        class_="axis",
    )


def _median(values: Sequence[float]) -> float:
    ordered = sorted(finite(values))
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
