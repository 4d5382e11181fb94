"""The monitor's part of a run's report: estimate and truth, score over rounds, clients of the last round."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedloom.core.ranks import spearman
from fedloom.core.records import Array, Info
from fedloom.reporting.charts import Series, line_chart, scatter_chart
from fedloom.reporting.markup import Markup, tag
from fedloom.reporting.page import section
from fedloom.reporting.plugins import Contribution
from fedloom.reporting.run_folder import RunFolder
from fedloom.strategies.mano.monitor.fits import correlation


def build_report(run: RunFolder) -> Contribution:
    """Return a section and numbers; none if the monitor was never used."""
    reported = [(record.round, record.monitor) for record in run.rounds if record.monitor]
    if not reported:
        return Contribution()
    found = numbers([info for _, info in reported])
    rounds = [float(number) for number, _ in reported]
    infos = [info for _, info in reported]
    pictures = [
        line_chart(
            "Accuracy on the monitored data",
            [
                Series(label="estimated without labels", x=rounds, y=_each(infos, "estimate")),
                Series(label="true", x=rounds, y=_each(infos, "accuracy"), color=1),
                Series(label="of the anchors", x=rounds, y=_each(infos, "anchors_accuracy"), color=6),
            ],
            x_label="round",
            x_whole=True,
        ),
        line_chart(
            "Score of each normalisation",
            [
                Series(label=branch, x=rounds, y=_each(infos, branch), color=color)
                for color, branch in enumerate(("softmax", "taylor"))
            ],
            x_label="round",
            x_whole=True,
        ),
        _clients(infos[-1]),
    ]
    branches = list(dict.fromkeys(info["branch"] for info in infos))
    phi = _each(infos, "criterion")
    words = (
        "Clients send sums over their samples' logits and no labels; added up, they give exactly the score of the "
        f"pooled data. The branch that ran was {' and '.join(branches)}; the criterion went from {phi[0]:.2f} to "
        f"{phi[-1]:.2f}."
    )
    if math.isfinite(found.get("monitor_error", math.nan)):
        words += (
            f" Estimate and truth differ by {100 * found['monitor_error']:.1f} points on average; using the anchors' "
            f"accuracy for all clients, by {100 * found['monitor_naive_error']:.1f}."
        )
    return Contribution(
        sections=(
            section("Accuracy without labels, round by round", tag("p", words), tag("div", pictures, class_="charts")),
        ),
        numbers=found,
    )


def numbers(infos: Sequence[Info]) -> dict[str, float]:
    """Return the numbers a study compares: mean |estimate - truth|, that of the anchors alone, and their correlation.

    `monitor_gain` is the reduction of the error. `monitor_r2_*` and `monitor_rho_*` are over rounds,
    `monitor_clients_rho_*` over the clients of the last round.
    """
    truth, estimate, naive = (np.array(_each(infos, key)) for key in ("accuracy", "estimate", "anchors_accuracy"))
    found = {"monitor_error": _distance(estimate, truth), "monitor_naive_error": _distance(naive, truth)}
    found["monitor_final_error"] = abs(float(estimate[-1] - truth[-1]))
    found["monitor_gain"] = found["monitor_naive_error"] - found["monitor_error"]
    last = infos[-1]["clients"]
    accuracy = np.array([line.get("accuracy", math.nan) for line in last], np.float64)
    for branch in ("softmax", "taylor"):
        score = np.array(_each(infos, branch))
        found[f"monitor_r2_{branch}"] = correlation(score, truth) ** 2
        found[f"monitor_rho_{branch}"] = spearman(score, truth)
        own = np.array([line[branch] for line in last], np.float64)
        found[f"monitor_clients_rho_{branch}"] = spearman(own, accuracy)
    return found


def _clients(info: Info) -> Markup:
    lines = [line for line in info["clients"] if "accuracy" in line]
    branch = info["branch"]
    points = Series(
        label="client",
        x=[line[branch] for line in lines],
        y=[line["accuracy"] for line in lines],
        names=[f"client {line['client']}" for line in lines],
    )
    return scatter_chart("Clients of the last round: true accuracy", [points], x_label=f"score, {branch}")


def _each(infos: Sequence[Info], key: str) -> list[float]:
    values = [info.get(key) for info in infos]
    return [math.nan if value is None else float(value) for value in values]


def _distance(a: Array, b: Array) -> float:
    gaps = np.abs(a - b)
    return float(gaps[np.isfinite(gaps)].mean()) if np.isfinite(gaps).any() else math.nan
