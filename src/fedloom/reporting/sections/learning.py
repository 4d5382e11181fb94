"""Learning curves: every metric per round and per byte, and the numbers behind the curves."""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.reporting.axes import bins
from fedloom.reporting.charts import Series, line_chart
from fedloom.reporting.curves import HELD_OUT, Curve, curves, metric_names
from fedloom.reporting.markup import Content, Markup, table, tag
from fedloom.reporting.page import collapsible, section
from fedloom.reporting.quantities import byte_unit, bytes_text, metric_text, seconds_text
from fedloom.reporting.run_folder import RunFolder

_MOST_METRICS, _MOST_NAMED = 8, 100
_MOST_ROWS = 400


def learning(run: RunFolder) -> Markup:
    """Return the curves of loss, accuracy and other metrics."""
    if not run.rounds:
        return section("Learning", tag("p", "No round has finished yet.", class_="empty"))
    names = metric_names(run)
    charts = [chart for name in names[:_MOST_METRICS] for chart in _pair(name, curves(run, name))]
    left_out = names[_MOST_METRICS:]
    return section(
        "Learning",
        tag(
            "p",
            "“Held-out data”: the global model after a round. “Clients' training”: the mean of what the "
            "round's clients reported while training, each from its initial model.",
        ),
        tag("div", charts, class_="charts") if charts else tag("p", "The run measured nothing.", class_="empty"),
        tag("p", f"Not drawn, but in rounds.jsonl: {_some(left_out)}.", class_="note") if left_out else None,
        collapsible("Round by round", _rounds(run, names)),
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _pair(name: str, measured: list[Curve]) -> tuple[Markup, Markup]:
    """Draw the metric per round and per byte, side by side."""
    divisor, unit = byte_unit(max(one.megabytes[-1] for one in measured) * 1e6)
    by_round = [Series(label=one.source, x=one.rounds, y=one.values, color=_color(one)) for one in measured]
    by_byte = [
        Series(label=one.source, x=[mb * 1e6 / divisor for mb in one.megabytes], y=one.values, color=_color(one))
        for one in measured
    ]
    return (
        line_chart(f"{name} per round", by_round, x_label="round", x_whole=True),
        line_chart(f"{name} per byte sent", by_byte, x_label=f"{unit} sent so far, up and down, by all clients"),
    )


def _color(one: Curve) -> int:
    return 0 if one.source == HELD_OUT else 1


def _rounds(run: RunFolder, names: list[str]) -> Markup:
    shown = run.rounds
    if len(shown) > _MOST_ROWS:
        shown = tuple(shown[stop - 1] for _, stop in bins(len(shown), _MOST_ROWS))
    shown_names = names[:_MOST_METRICS]
    rows: list[Sequence[Content]] = [
        (
            record.round,
            *(metric_text((record.evaluation or {}).get(name, record.metrics.get(name))) for name in shown_names),
            f"{len(record.cohort) - len(record.failures):,} of {len(record.cohort):,}",
            bytes_text(record.traffic.bytes_up),
            bytes_text(record.traffic.bytes_down),
            seconds_text(record.timing.total_s),
        )
        for record in shown
    ]
    caption = "Held-out metrics if the round was evaluated, otherwise training metrics"
    if len(shown) < len(run.rounds):
        caption += f"; {len(shown)} of {len(run.rounds)} rounds; rounds.jsonl has all"
    return table(("round", *shown_names, "updates", "up", "down", "time"), rows, caption=caption)
