"""The report's section: how even the clients' losses are. Imported when a report is made, never by a run."""

from __future__ import annotations

import numpy as np

from fedloom.reporting.charts import Series, line_chart
from fedloom.reporting.markup import tag
from fedloom.reporting.page import section
from fedloom.reporting.plugins import Contribution
from fedloom.reporting.quantities import metric_text
from fedloom.reporting.run_folder import RunFolder


def build_report(run: RunFolder) -> Contribution:
    """Return the section, the numbers that a study compares, and a row for `fedloom compare`."""
    reported = [
        (record.round, list(record.info["losses"].values())) for record in run.rounds if record.info.get("losses")
    ]
    if not reported:
        return Contribution()
    rounds = [float(number) for number, _ in reported]
    lines = [
        Series(label="mean", x=rounds, y=[float(np.mean(losses)) for _, losses in reported]),
        Series(label="worst client", x=rounds, y=[max(losses) for _, losses in reported], color=1),
    ]
    numbers = {"worst_loss": lines[1].y[-1], "loss_spread": float(np.std(reported[-1][1]))}
    words = (
        f"In the last round the clients' losses had a mean of {metric_text(lines[0].y[-1])}, the worst was "
        f"{metric_text(numbers['worst_loss'])}."
    )
    chart = line_chart("Loss of the round's clients before they train", lines, x_label="round", x_whole=True)
    return Contribution(
        sections=(section("Fairness", tag("p", words), tag("div", chart, class_="charts")),),
        numbers=numbers,
        headlines={"worst client's loss": metric_text(numbers["worst_loss"])},
    )
