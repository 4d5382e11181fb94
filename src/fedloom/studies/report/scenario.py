"""One scenario's part of the page: tables and charts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedloom.reporting.axes import Range
from fedloom.reporting.charts import PALETTE, Series, line_chart
from fedloom.reporting.grids import grid_picture
from fedloom.reporting.markup import Markup, table, tag
from fedloom.reporting.page import collapsible, section
from fedloom.reporting.study_part import NumberColumn
from fedloom.studies.definition import Definition
from fedloom.studies.measures import COSTS
from fedloom.studies.report.charts import Banded, band_chart, dot_chart
from fedloom.studies.report.tables import (
    Column,
    client_columns,
    cost_columns,
    equal_cost_columns,
    result_columns,
    rows,
)
from fedloom.studies.results import ArmResult, ScenarioResult

_MOST_HIGHLIGHTED = 5


def scenario_section(definition: Definition, scenario: ScenarioResult, contributed: Sequence[NumberColumn]) -> Markup:
    """Return the section about one scenario."""
    if not any(arm.runs for arm in scenario.arms.values()):
        return section(scenario.title, tag("p", "No run of this scenario has finished yet.", class_="empty"))
    return section(
        scenario.title,
        _target_line(definition, scenario),
        _table(scenario, result_columns(definition), f"Learning, against {definition.reference}"),
        tag("div", *_charts(definition, scenario), class_="charts"),
        _table(scenario, equal_cost_columns(), f"At equal cost, against {definition.reference}"),
        tag(
            "p",
            "“To target”: median paired ratio of the cost to reach the target.  “At equal …”: difference "
            f"of mean {definition.metric} over the costs that both runs of a pair have reached.",
            class_="note",
        ),
        _table(scenario, found, "Aggregated clients, means over rounds")
        if (found := client_columns(scenario, contributed))
        else None,
        _table(scenario, cost_columns(scenario, contributed), "What a round costs, all clients together"),
        collapsible("All arms", tag("div", *_all_arms(definition, scenario), class_="charts")),
    )


def highlighted(definition: Definition, scenario: ScenarioResult) -> list[tuple[int, str, ArmResult]]:
    """Return the arms drawn with bands, as (colour, name, result)."""
    names = definition.highlight or tuple(scenario.arms)[:_MOST_HIGHLIGHTED]
    return [(color, name, scenario.arms[name]) for color, name in enumerate(names) if scenario.arms[name].runs]


def _target_line(definition: Definition, scenario: ScenarioResult) -> Markup:
    if not math.isfinite(scenario.target):
        return tag("p", f"No target yet: {definition.reference} has no finished run here.", class_="note")
    origin = (
        "as the study sets it"
        if definition.target.value is not None
        else f"{definition.target.share:g} of {definition.reference}'s median final value"
    )
    return tag(
        "p",
        f"Target: {definition.metric} {scenario.target:.4f} ({origin}). Final values are means of the last "
        f"{definition.target.last} evaluated rounds. Intervals over seeds: 95 %, Student's t for means, order "
        "statistics for medians; differences and ratios are paired by seed. A run that never "
        "reaches the target counts as one round more than it has.",
        class_="note",
    )


def _table(scenario: ScenarioResult, columns: Sequence[Column], caption: str) -> Markup:
    head = ("arm", *(column.name for column in columns))
    shown = [[tag("span", name, title=scenario.arms[name].title), *cells] for name, *cells in rows(scenario, columns)]
    return table(head, shown, caption=caption)


def _charts(definition: Definition, scenario: ScenarioResult) -> list[Markup]:
    chosen = highlighted(definition, scenario)
    metric = definition.metric
    charts = [
        band_chart(
            f"{metric} per round",
            [_banded(color, name, arm, "metric") for color, name, arm in chosen if "metric" in arm.bands],
            x_label="round",
            note="Median over seeds; the band contains the middle half.",
        ),
        _against(metric, chosen, "trainings"),
        _against(metric, chosen, "uplink"),
    ]
    if any("kl" in arm.bands for _, _, arm in chosen):
        charts.append(
            band_chart(
                "KL of the aggregated pool to uniform",
                [_banded(color, name, arm, "kl") for color, name, arm in chosen if "kl" in arm.bands],
                x_label="round",
                note="Lower is more balanced. Median over seeds; the band contains the middle half.",
            )
        )
    charts.append(_rounds(definition, scenario))
    if any("kl" in arm.estimates for arm in scenario.arms.values()):
        charts.append(
            dot_chart(
                "Balance of each round's pool: KL to uniform, mean over rounds",
                _values(scenario, "kl"),
                x_label="KL, nats",
                reference=_reference(definition, scenario, "kl"),
                note="A dot for each seed, the bar is the median. The dashed line is the reference's.",
            )
        )
    if (picture := _participation(scenario)) is not None:
        charts.append(picture)
    return charts


def _banded(color: int, name: str, arm: ArmResult, series: str) -> Banded:
    band = arm.bands[series]
    x = [float(number) for number in range(1, len(band.median) + 1)]
    return Banded(label=name, x=x, middle=band.median, low=band.low, high=band.high, color=color)


def _against(metric: str, chosen: Sequence[tuple[int, str, ArmResult]], cost: str) -> Markup:
    """Draw the median metric against the median cumulative cost."""
    lines = [
        Series(label=name, x=arm.bands[cost].median, y=arm.bands["metric"].median, color=color)
        for color, name, arm in chosen
        if "metric" in arm.bands
    ]
    return line_chart(
        f"{metric} against {COSTS[cost].partition(',')[0]}", lines, x_label=f"{COSTS[cost]} so far, all clients"
    )


def _rounds(definition: Definition, scenario: ScenarioResult) -> Markup:
    lengths = [len(arm.bands["metric"].median) for arm in scenario.arms.values() if "metric" in arm.bands]
    return dot_chart(
        "Rounds to the target",
        _values(scenario, "rounds"),
        x_label="rounds",
        censored_at=max(lengths, default=0) + 1.0,
        reference=_reference(definition, scenario, "rounds"),
        note="A dot for each seed, hollow where the target was never reached; the bar is the median. The dashed line "
        "is the reference's.",
    )


def _values(scenario: ScenarioResult, number: str) -> dict[str, list[float]]:
    return {
        name: [run.get(number, math.nan) for run in arm.runs.values()]
        for name, arm in scenario.arms.items()
        if any(number in run for run in arm.runs.values())
    }


def _reference(definition: Definition, scenario: ScenarioResult, number: str) -> float | None:
    arm = scenario.arms.get(definition.reference)
    if arm is None or number not in arm.estimates:
        return None
    values = sorted(run[number] for run in arm.runs.values() if number in run)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def _participation(scenario: ScenarioResult) -> Markup | None:
    """Return how evenly clients are aggregated: arms by clients, each arm's from the most to the least often."""
    known = {name: arm.times_aggregated for name, arm in scenario.arms.items() if arm.times_aggregated}
    if not known:
        return None
    import numpy as np

    times = np.array(list(known.values()), np.float64)
    shares = times / np.maximum(times.max(axis=1, keepdims=True), 1e-12)
    reported = "; ".join(f"{name}: {values[0]:.1f} to {values[-1]:.1f} times" for name, values in known.items())
    return grid_picture(
        "How often clients are aggregated",
        shares,
        spoken=f"Arms by clients, the most often aggregated first. {reported}",
        x_label="clients, from the most to the least often aggregated",
        x=Range(low=-0.5, high=times.shape[1] - 0.5),
        y=Range(low=len(known) - 0.5, high=-0.5),
        y_names=[(float(index), _short(name)) for index, name in enumerate(known)],
        note="Mean over seeds; each row is scaled by its most frequent client. Even rows mean evenly distributed work.",
    )


def _all_arms(definition: Definition, scenario: ScenarioResult) -> list[Markup]:
    """Return every arm next to the reference, one picture each."""
    reference = scenario.arms.get(definition.reference)
    pictures = []
    for index, (name, arm) in enumerate(scenario.arms.items()):
        if name == definition.reference or "metric" not in arm.bands:
            continue
        beside = (
            [_banded(6, definition.reference, reference, "metric")]
            if reference is not None and "metric" in reference.bands
            else []
        )
        lines = [*beside, _banded(index % (PALETTE - 2), name, arm, "metric")]
        pictures.append(band_chart(f"{definition.metric}: {arm.title}", lines, x_label="round"))
    return pictures


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"
