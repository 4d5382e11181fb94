"""Charts as inline SVG: lines, stacked bars, and grids of cells. Colours are the page's (`page.css`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedloom.reporting.axes import Plane, Range, bins, finite, thinned, tick_text, ticks
from fedloom.reporting.markup import Content, Markup, join, tag
from fedloom.reporting.quantities import metric_text

PALETTE = 8
"""Colours of the page, `--c0` to `--c7`."""
_DASHES = (None, "6 4", "2 3", "9 3 2 3")
_MOST_POINTS = 80
"""Up to this many points get a mark whose value is shown on hover."""
_MOST_BARS = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a chart."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    names: Sequence[str] = ()
    """Labels of the points, shown on hover in a scatter chart."""


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    x_whole: bool = False,
    from_zero: bool = False,
    note: str | None = None,
) -> Markup:
    """Draw lines over a common axis. Values that are not finite leave gaps; a chart without any value says so."""
    drawn = [one for one in series if finite(one.y)]
    if not drawn:
        return figure(title, tag("p", "No finite value was measured.", class_="empty"), note=note)
    plane = line_plane(drawn, x_whole=x_whole, from_zero=from_zero)
    text = "; ".join(f"{one.label}: {_span(one)}" for one in drawn)
    picture = svg(plane, f"{title}, against {x_label}. {text}", lines(plane, drawn, x_label, x_whole=x_whole))
    return figure(title, picture, legend=[(one.label, one.color) for one in drawn], note=note)


def line_plane(series: Sequence[Series], *, x_whole: bool = False, from_zero: bool = False) -> Plane:
    """Return the axes that contain the series; some value must be finite."""
    return Plane(
        x=_padded_if_single(Range.of([v for one in series for v in one.x], from_zero=not x_whole)),
        y=Range.of([v for one in series for v in one.y], from_zero=from_zero).to_ticks(),
    )


def lines(plane: Plane, series: Sequence[Series], x_label: str, *, x_whole: bool = False) -> Markup:
    """Draw the frame and the lines of a chart."""
    return join(frame(plane, x_label, x_whole=x_whole), [_line(plane, one, x_label) for one in series])


def scatter_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    lines: Sequence[Series] = (),
    note: str | None = None,
) -> Markup:
    """Draw points without a path, and `lines` through them; values that are not finite are omitted."""
    drawn = [one for one in series if finite(one.x) and finite(one.y)]
    if not drawn:
        return figure(title, tag("p", "No finite value was measured.", class_="empty"), note=note)
    plane = Plane(
        x=_padded_if_single(Range.of([v for one in drawn for v in one.x])),
        y=Range.of([v for one in (*drawn, *lines) for v in one.y]).to_ticks(),
    )
    count = sum(len(one.x) for one in drawn)
    picture = svg(
        plane,
        f"{title}, against {x_label}. {count} points",
        frame(plane, x_label),
        [_line(plane, one, x_label) for one in lines],
        [_points(plane, one, x_label) for one in drawn],
    )
    return figure(title, picture, legend=[(one.label, one.color) for one in drawn], note=note)


def bar_chart(
    title: str,
    layers: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    first: int = 1,
    width: int = 1,
    note: str | None = None,
) -> Markup:
    """Draw stacked bars over whole numbers: rounds, sizes. If there are many, neighbours are shown as their mean.

    Args:
        title: the title, with the unit.
        layers: heights by layer, the lowest layer first; all of one length.
        x_label: name of the horizontal axis.
        first: the first bar's first number.
        width: numbers per bar.
        note: a sentence below.
    """
    length = max((len(heights) for heights in layers.values()), default=0)
    if not length:
        return figure(title, tag("p", "There is no finished round yet.", class_="empty"), note=note)
    spans = bins(length, _MOST_BARS)
    means = {
        label: [sum(heights[start:stop]) / (stop - start) for start, stop in spans] for label, heights in layers.items()
    }
    tops = [sum(column) for column in zip(*means.values(), strict=True)]
    plane = Plane(x=Range(low=first - 0.5, high=first + length * width - 0.5), y=Range.of([0.0, *tops], from_zero=True))
    bars = [
        _bar(plane, first + start * width, first + stop * width - 1, {k: v[i] for k, v in means.items()}, x_label)
        for i, (start, stop) in enumerate(spans)
    ]
    spoken = "; ".join(f"{label}: {metric_text(sum(heights))} in all" for label, heights in layers.items())
    if len(spans) < length:
        note = " ".join(filter(None, (note, f"Each bar is the mean of about {length // len(spans)} {x_label}s.")))
    picture = svg(plane, f"{title}, for each {x_label}. {spoken}", frame(plane, x_label, x_whole=True), bars)
    return figure(title, picture, legend=[(label, color) for color, label in enumerate(layers)], note=note)


def figure(
    title: str,
    picture: Markup,
    *,
    legend: Sequence[tuple[str, int]] = (),
    note: str | None = None,
    wide: bool = False,
) -> Markup:
    """Return a chart with its title above, the legend, and a sentence below."""
    keys = [tag("span", tag("i", class_=f"key k{color % PALETTE}"), label) for label, color in legend]
    return tag(
        "figure",
        tag("figcaption", tag("strong", title), tag("span", keys, class_="legend") if len(keys) > 1 else None),
        picture,
        tag("p", note, class_="note") if note else None,
        class_="wide" if wide else None,
    )


def svg(plane: Plane, spoken: str, *content: Content) -> Markup:
    """Return the SVG element of a chart; `spoken` is the text for screen readers."""
    return tag(
        "svg",
        *content,
        viewBox=f"0 0 {plane.width:g} {plane.height:g}",
        role="img",
        aria_label=spoken,
    )


def frame(
    plane: Plane,
    x_label: str,
    *,
    x_whole: bool = False,
    y_ticks: Callable[[Plane], Sequence[tuple[float, str]]] | None = None,
) -> Markup:
    """Draw grid lines, tick labels and the name of the horizontal axis."""
    rows = y_ticks(plane) if y_ticks else _labelled(ticks(plane.y.low, plane.y.high))
    columns = _labelled(ticks(plane.x.low, plane.x.high, 6, whole=x_whole))
    bottom = plane.height - plane.bottom
    return join(
        [
            join(
                tag(
                    "line",
                    x1=plane.left,
                    x2=plane.width - plane.right,
                    y1=plane.down(v),
                    y2=plane.down(v),
                    class_="grid",
                ),
                tag("text", text, x=plane.left - 7, y=plane.down(v) + 4, text_anchor="end"),
            )
            for v, text in rows
        ],
        [tag("text", text, x=plane.across(v), y=bottom + 16, text_anchor="middle") for v, text in columns],
        tag("line", x1=plane.left, x2=plane.width - plane.right, y1=bottom, y2=bottom, class_="axis"),
        tag(
            "text",
            x_label,
            x=(plane.left + plane.width - plane.right) / 2,
            y=plane.height - 6,
            class_="axis-name",
            text_anchor="middle",
        ),
    )


def _line(plane: Plane, series: Series, x_label: str) -> Markup:
    style = {
        "class_": f"s{series.color % PALETTE}",
        "stroke_dasharray": _DASHES[series.color // PALETTE % len(_DASHES)],
    }
    strokes, pen = [], "M"
    points = thinned(series.x, series.y)
    for x, y in points:
        if math.isfinite(y):
            strokes.append(f"{pen}{plane.across(x):.1f} {plane.down(y):.1f}")
            pen = "L"
        else:
            pen = "M"
    marks = [
        tag(
            "circle",
            tag("title", f"{series.label}, {x_label} {x:g}: {metric_text(y)}"),
            cx=plane.across(x),
            cy=plane.down(y),
            r=3.2 if len(points) <= 20 else 2.0,
            class_=f"f{series.color % PALETTE}",
        )
        for x, y in points
        if math.isfinite(y) and len(points) <= _MOST_POINTS
    ]
    return join(tag("path", d="".join(strokes), fill="none", **style), marks)


def _points(plane: Plane, series: Series, x_label: str) -> Markup:
    names = series.names or [series.label] * len(series.x)
    return join(
        tag(
            "circle",
            tag("title", f"{name}, {x_label} {metric_text(x)}: {metric_text(y)}"),
            cx=plane.across(x),
            cy=plane.down(y),
            r=2.6,
            class_=f"f{series.color % PALETTE}",
        )
        for name, x, y in zip(names, series.x, series.y, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    )


def _bar(plane: Plane, low: int, high: int, heights: Mapping[str, float], x_label: str) -> Markup:
    """Draw one column: the numbers from `low` to `high`."""
    left, right = plane.across(low - 0.5), plane.across(high + 0.5)
    gap = min(2.0, (right - left) * 0.15) if right - left > 4 else 0.0
    where = f"{x_label} {low:,}" + (f" to {high:,}" if high > low else "")
    pieces, floor = [], 0.0
    for color, (label, height) in enumerate(heights.items()):
        if math.isfinite(height) and height > 0:
            top = plane.down(floor + height)
            pieces.append(
                tag(
                    "rect",
                    tag("title", f"{where}, {label}: {metric_text(height)}"),
                    x=left + gap / 2,
                    y=top,
                    width=right - left - gap,
                    height=plane.down(floor) - top,
                    class_=f"f{color % PALETTE}",
                )
            )
            floor += height
    return join(pieces)


def _labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    step = values[1] - values[0] if len(values) > 1 else abs(values[0])
    return [(value, tick_text(value, step)) for value in values]


def _padded_if_single(span: Range) -> Range:
    """Return a slightly wider range if a run has only one point, so that its mark is not on the frame."""
    return replace(span, low=span.low - 0.5, high=span.high + 0.5) if span.high - span.low < 1e-12 else span


def _span(series: Series) -> str:
    values = finite(series.y)
    low, high = metric_text(min(values)), metric_text(max(values))
    return f"from {metric_text(values[0])} to {metric_text(values[-1])}, lowest {low}, highest {high}"
