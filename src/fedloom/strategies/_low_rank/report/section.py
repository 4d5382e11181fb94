"""The section about the saving, the rank of every round and layer, and the error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from fedloom.reporting.axes import Range, bins
from fedloom.reporting.charts import Series, bar_chart, line_chart
from fedloom.reporting.curves import HELD_OUT, curve, metric_names
from fedloom.reporting.grids import grid_picture
from fedloom.reporting.markup import Content, Markup, table, tag
from fedloom.reporting.page import section
from fedloom.reporting.plugins import Contribution
from fedloom.reporting.quantities import NOTHING, byte_unit, bytes_text, plural
from fedloom.reporting.run_folder import RunFolder
from fedloom.strategies._low_rank.budgets import Budgets, Saving, read

_READINGS = {
    "saving": "parameters sent up, all rounds",
    "saving_annealing": "parameters sent up, rounds with adapters only",
    "saving_both_ways": "parameters both ways, all rounds",
    "saving_bytes": "bytes sent up, all rounds",
    "saving_bytes_both_ways": "bytes both ways, all rounds",
    "saving_rank_rounds": "rank-rounds, against the largest rank in every one",
}
_RACED = "accuracy"
"""The metric drawn against the traffic, if it was measured."""
_MOST_ROWS, _MOST_COLUMNS, _MOST_NAMES, _LONGEST_NAME = 64, 180, 16, 34


def contribution(run: RunFolder) -> Contribution:
    """Return section and numbers; none before the first round."""
    started = run.last_event("RunStarted") or {}
    full = run.summary.num_parameters if run.summary else int(started.get("num_parameters", 0))
    budgets = read(run.rounds, full)
    if not budgets.rounds or not full:
        return Contribution()
    last, bound = curve(run, _RACED, HELD_OUT), _bound(budgets)
    numbers = budgets.numbers() | ({f"last_{_RACED}": last.values[-1]} if last else {})
    return Contribution(
        sections=(_section(run, budgets),),
        numbers=numbers,
        headlines={"uplink saving": _percent(numbers["saving"]) + (f" ({bound})" if bound else "")},
    )


def _section(run: RunFolder, budgets: Budgets) -> Markup:
    charts = [_per_byte(run, budgets), _so_far(budgets), _staircase(budgets), _error(budgets), _layers(budgets)]
    return section(
        "Communication budget",
        _definition(budgets),
        tag("dl", _tiles(budgets), class_="tiles"),
        tag("div", charts, class_="charts"),
        _nothing_to_draw(budgets),
        _readings(budgets),
    )


def _definition(budgets: Budgets) -> Markup:
    rounds, whole = len(budgets.rounds), len(budgets.rounds) - len(budgets.adapted)
    bounded = (
        f"{whole:,} of {plural(rounds, 'round')} sent whole models, so it cannot be more than "
        f"1 \N{MINUS SIGN} Tᵢ/T = {_percent(budgets.bound)}, however little the other rounds send."
    )
    fedavg = tag("sub", "FedAvg")
    return tag(
        "p",
        *("The saving is 1 \N{MINUS SIGN} C/C", fedavg),
        *(": C counts the parameters that clients sent up in all rounds, C", fedavg),
        f" what the same updates would have cost as whole models of {budgets.full:,} parameters. ",
        bounded if whole else "No round sent whole models.",
    )


def _tiles(budgets: Budgets) -> list[Markup]:
    saving, numbers = budgets.savings()["saving"], budgets.numbers()
    tiles = [
        ("uplink saving", _percent(saving.share), _bound(budgets)),
        ("sent up", f"{saving.sent:,.0f}", f"of {saving.whole:,.0f} parameters"),
    ]
    if budgets.adapted:
        ranks = [each.rank for each in budgets.adapted]
        steps = f"{_number(ranks[0])} → {_number(ranks[-1])}"
        tiles += [
            ("rank", _number(ranks[0]), "in every round")
            if budgets.constant
            else ("rank", steps, f"mean {numbers['mean_rank']:.2f}"),
            ("rank-rounds", _number(budgets.rank_rounds), f"{_number(budgets.rank_max * len(ranks))} at full rank"),
        ]
    if numbers["params_base"]:
        tiles.append(("frozen base", f"{numbers['params_base']:,.0f}", "values, read once by each client"))
    return [tag("div", tag("dt", name), tag("dd", value, tag("small", detail))) for name, value, detail in tiles]


def _per_byte(run: RunFolder, budgets: Budgets) -> Markup | None:
    """Draw the metric against the bytes sent up, by stage."""
    names = [name for name in metric_names(run) if curve(run, name, HELD_OUT)]
    if not names:
        return None
    metric = _RACED if _RACED in names else names[0]
    sent = list(itertools.accumulate(record.traffic.bytes_up for record in run.rounds))
    divisor, unit = byte_unit(sent[-1])
    whole = {each.round for each in budgets.rounds if each.whole}
    points = [
        (record.round in whole, up / divisor, record.evaluation[metric])
        for record, up in zip(run.rounds, sent, strict=True)
        if record.evaluation and metric in record.evaluation
    ]
    first, rest = ([point for point in points if point[0] is stage] for stage in (True, False))
    joined = [*first[-1:], *rest] if rest else []  # the second stage's line begins where the first one's ends
    series = [
        Series(label=label, x=[x for _, x, _ in some], y=[y for _, _, y in some], color=color)
        for label, some, color in (("whole models", first, 1), ("adapters", joined, 0))
        if some
    ]
    return line_chart(f"{metric} per byte sent up", series, x_label=f"{unit} sent up so far, by all clients")


def _so_far(budgets: Budgets) -> Markup:
    """Draw the parameters sent up, and those of whole models."""
    rounds = [each.round for each in budgets.rounds]
    sent, whole = (
        [value / 1e6 for value in itertools.accumulate(values)]
        for values in ([each.up.sent for each in budgets.rounds], [each.up.whole for each in budgets.rounds])
    )
    return line_chart(
        "Parameters sent up, millions",
        [Series(label="this run", x=rounds, y=sent), Series(label="FedAvg", x=rounds, y=whole, color=6)],
        x_label="round",
        x_whole=True,
        from_zero=True,
    )


def _staircase(budgets: Budgets) -> Markup | None:
    if budgets.constant:
        return None
    whole = [each.round for each in budgets.rounds if each.whole]
    note = f"Rounds {whole[0]} to {whole[-1]} sent whole models." if len(whole) > 1 else None
    note = f"Round {whole[0]} sent whole models." if len(whole) == 1 else note
    return bar_chart(
        "Rank of each round, mean over the layers",
        {"rank": [each.rank for each in budgets.rounds]},
        x_label="round",
        first=budgets.rounds[0].round,
        note=note,
    )


def _error(budgets: Budgets) -> Markup | None:
    """Draw the distance of the aggregated factors from the clients' mean change, if there is one."""
    known = [each for each in budgets.adapted if math.isfinite(each.error)]
    if not known:
        return None
    if not any(each.error for each in known):
        return None
    return line_chart(
        "Aggregation error, relative (Frobenius)",
        [Series(label="error", x=[each.round for each in known], y=[each.error for each in known], color=4)],
        x_label="round",
        x_whole=True,
        from_zero=True,
        note="‖BA \N{MINUS SIGN} Σ pₖBₖAₖ‖ / ‖Σ pₖBₖAₖ‖, over all layers.",
    )


def _layers(budgets: Budgets) -> Markup | None:
    """Draw ranks by layer and round, if the layers differ."""
    rounds = budgets.adapted
    names = list(dict.fromkeys(name for each in rounds for name in each.ranks))
    if budgets.uniform:
        return None
    ranks = np.array([[each.ranks.get(name, 0) for each in rounds] for name in names], np.float64)
    cells = _binned(_binned(ranks, _MOST_ROWS).T, _MOST_COLUMNS).T
    most = int(ranks.max())
    per_row = -(-len(names) // cells.shape[0])
    return grid_picture(
        "Rank of each layer",
        cells / most,
        spoken=f"Layers by rounds: ranks from {int(ranks.min())} to {most} over {plural(len(names), 'layer')}.",
        x_label="round",
        x=Range(low=rounds[0].round - 0.5, high=rounds[-1].round + 0.5),
        y=Range(low=len(names) - 0.5, high=-0.5),
        y_names=_ticks(names),
        note=f"Darker means higher: ranks from {int(ranks.min())} to {most}."
        + (f" A row is about {plural(per_row, 'layer')}." if per_row > 1 else ""),
    )


def _nothing_to_draw(budgets: Budgets) -> Markup | None:
    """Describe in words what no picture shows."""
    errors = [each.error for each in budgets.adapted if math.isfinite(each.error)]
    layers = len(budgets.adapted[0].ranks) if budgets.adapted else 0
    remarks = [
        f"All {plural(layers, 'layer')} with adapters had the round's rank." if layers and budgets.uniform else "",
        "The aggregation was exact in every round." if errors and not any(errors) else "",
    ]
    return tag("p", " ".join(filter(None, remarks)), class_="note") if any(remarks) else None


def _binned(values: np.ndarray, most: int) -> np.ndarray:
    """Return the means of neighbouring rows, at most `most`."""
    return np.array([values[start:stop].mean(axis=0) for start, stop in bins(len(values), most)])


def _ticks(names: Sequence[str]) -> list[tuple[float, str]]:
    """Return some layers' names, without their common prefix, long ones truncated in front."""
    steps = [name.split(".") for name in names]
    shared = sum(1 for _ in itertools.takewhile(lambda step: len(set(step)) == 1, zip(*steps, strict=False)))
    short = [".".join(step[min(shared, len(step) - 1) :]) for step in steps]
    every = -(-len(names) // _MOST_NAMES)
    return [
        (float(at), name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}")
        for at, name in enumerate(short)
        if at % every == 0
    ]


def _readings(budgets: Budgets) -> Markup:
    rows = [_reading(name, saving) for name, saving in budgets.savings().items() if saving.whole]
    return table(
        ("reading", "sent", "full-model FedAvg", "saving", "name in studies"),
        rows,
        caption="Definitions of the saving. The first is used everywhere else; FedAvg sends 4 bytes a parameter",
    )


def _reading(name: str, saving: Saving) -> tuple[Content, ...]:
    text = bytes_text if "bytes" in name else _number
    label: Content = _READINGS[name]
    share: Content = _percent(saving.share)
    if name == "saving":
        label, share = tag("strong", label), tag("strong", share)
    return label, text(saving.sent), text(saving.whole), share, tag("code", name)


def _bound(budgets: Budgets) -> str:
    """Return the saving's limit, if rounds with whole models set one."""
    return f"at most {_percent(budgets.bound)}" if budgets.bound < 1 else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def _percent(value: float) -> str:
    if not math.isfinite(value):
        return NOTHING
    return f"{100 * value:.2f} %".replace("-", "\N{MINUS SIGN}")
